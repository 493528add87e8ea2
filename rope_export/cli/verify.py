"""rope-export verify: compare an artifact with eager PyTorch."""

from pathlib import Path
from typing import Annotated

import typer

from rope_export.cli import output
from rope_export.errors import InputError, UnavailableError


def verify_artifact(
    context: typer.Context,
    path: Annotated[
        Path, typer.Argument(metavar="DIR", help="The artifact's folder, or an engine's.")
    ],
    runtime: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A runtime to compare; may be repeated."),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help="Where its weights come from, if that has moved."),
    ] = None,
    adapter: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="The adapter merged into them, if that has moved."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the drawn inputs.")] = 0,
    large: Annotated[
        bool,
        typer.Option("--large", help="Also the corners of an engine that take gigabytes."),
    ] = False,
    require: Annotated[
        list[str] | None,
        typer.Option(metavar="reading", help="What must be proven for status 0: reading."),
    ] = None,
    all_rows: Annotated[
        bool, typer.Option("--all", help="Show every case, not only the worst of each output.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Compare an artifact with eager PyTorch and a float64 reference, case by case."""
    for name in require or ():
        if name != "reading":
            raise InputError(f"--require {name}: use reading.")
    with output.progress() as step:
        step("loading PyTorch", None)
        from rope_export.parity import verify as run

        report = run(
            path,
            source=source,
            adapter=adapter,
            runtimes=runtime,
            seed=seed,
            large=large,
            progress=step,
        )
    output.warn(report.notes)
    if as_json:
        output.print_json(output.report_json(report, context))
    else:
        title = f"{path} against eager PyTorch"
        output.print_report(report, title, context, every_row=all_rows)
    status = output.PASSED[report.status]
    if require and status == 0 and report.reading.status != "proven":
        reason = output.speller(context)(str(report.reading.reason))
        output.error(f"--require reading: it is unproven ({reason}).")
        return UnavailableError.status
    return status

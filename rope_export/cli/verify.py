"""rope-export verify: compare an artifact with eager PyTorch."""

from pathlib import Path
from typing import Annotated

import typer

from rope_export.cli import output


def verify(
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
    seed: Annotated[int, typer.Option(help="Of the drawn inputs.")] = 0,
    large: Annotated[
        bool,
        typer.Option("--large", help="Also the corners of an engine that take gigabytes."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Compare an artifact with eager PyTorch and a float64 reference, case by case."""
    with output.progress() as step:
        step("loading PyTorch", None)
        from rope_export.parity import verify as run
        from rope_export.parity.report import table

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
        output.print_json(report.to_json())
    else:
        output.out().print(table(report, f"{path} against eager PyTorch"))
    return output.PASSED[report.status]

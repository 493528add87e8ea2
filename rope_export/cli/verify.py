"""rope-export verify: compare an artifact with eager PyTorch."""

from pathlib import Path
from typing import Annotated

import typer

from rope_export.cli import output
from rope_export.errors import InputError, UnavailableError


def verify_artifact(
    context: typer.Context,
    path: Annotated[
        Path,
        typer.Argument(metavar="PATH", help="An artifact's folder, an engine's, or an .onnx file."),
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
    spec: Annotated[
        str | None,
        typer.Option(
            metavar="CONFIG", help="The config of an .onnx file, where there is no source."
        ),
    ] = None,
    layer: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="The layer that an .onnx file holds; without, a whole decoder."
        ),
    ] = None,
    decoder: Annotated[
        bool, typer.Option("--decoder", help="That an .onnx file holds a whole decoder.")
    ] = False,
    maps: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            metavar="OURS=THEIRS",
            help="A tensor of an .onnx file that others made, by our name; may be repeated.",
        ),
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
    if decoder and layer is not None:
        raise InputError("--layer and --decoder: a file holds one or the other.")
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
            spec=spec,
            layer=layer,
            maps=dict(map(_pair, maps or ())),
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


def _pair(text: str) -> tuple[str, str]:
    ours, equals, theirs = text.partition("=")
    if not (ours and equals and theirs):
        raise InputError(f"--map {text}: use OURS=THEIRS, such as input_ids=tokens.")
    return ours, theirs

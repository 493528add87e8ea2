"""rope-export verify: compare an artifact with eager PyTorch."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from rope_export.artifacts.decoder import DecoderArtifact
from rope_export.artifacts.folder import peek
from rope_export.cli import output
from rope_export.cli.reports import ReportFiles, commands, facts
from rope_export.errors import InputError, RopeExportError, UnavailableError


def verify_artifact(
    context: typer.Context,
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH", help="An artifact's folder, an engine's, an .onnx file, or a recording."
        ),
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
    case: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Compare this case alone; may be repeated."),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Write a report with plots.")
    ] = None,
    junit: Annotated[
        Path | None, typer.Option(metavar="FILE.xml", help="Write every row in JUnit's format.")
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(metavar="FILE.md", help="Write what a pull request shows.")
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json",
            help="What --json printed earlier: fail where an error has grown since.",
        ),
    ] = None,
    factor: Annotated[
        float | None,
        typer.Option(
            help="With --baseline: how many times as large an error may be, 2 by default."
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="OTHER",
            help="Compare with this as well: a runtime, an artifact, an engine, an .onnx file, or "
            "recorded outputs (.npz, Polygraphy's .json).",
        ),
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option(metavar="FILE.npz", help="Keep inputs and outputs of every call."),
    ] = None,
    replay: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Take the calls' inputs from here (.npz, Polygraphy's .json)."
        ),
    ] = None,
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
    if decoder and path.is_dir() and not isinstance(peek(path).artifact, DecoderArtifact):
        raise InputError(f"--decoder: {path} holds one attention layer. Leave it out.")
    with output.progress() as step:
        step("loading PyTorch", None)
        from rope_export.parity import verify as run
        from rope_export.parity.report.lines import TWO_RECORDINGS

        files = ReportFiles({"report": report, "junit": junit, "markdown": markdown})
        found = run(
            path,
            source=source,
            adapter=adapter,
            runtimes=runtime,
            seed=seed,
            large=large,
            spec=spec,
            layer=layer,
            maps=_pairs(maps or ()),
            cases=case or (),
            spread=files.spread,
            baseline=baseline,
            factor=factor,
            against=against,
            record=record,
            replay=replay,
            progress=step,
        )
        step("writing reports", None)
        unwritten = None
        try:
            files.write(found, str(path), context, commands(context), lambda: facts(context))
        except OSError as error:  # which costs a file, not the verdict
            unwritten = f"a report was not written: {error.strerror or error}."
    output.warn(found.notes)
    if as_json:
        output.print_json(output.report_json(found, context))
    else:
        others = [] if found.reading.reason == TWO_RECORDINGS else ["eager PyTorch"]
        others += [] if against is None else [against]
        title = f"{path} against {' and '.join(others)}"
        output.print_report(found, title, context, every_row=all_rows)
    status = output.PASSED[found.status]
    if unwritten is not None:
        output.error(unwritten)
        return RopeExportError.status
    if require and status == 0 and found.reading.status != "proven":
        reason = output.speller(context)(str(found.reading.reason))
        output.error(f"--require reading: it is unproven ({reason}).")
        return UnavailableError.status
    return status


def _pairs(texts: Iterable[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in texts:
        ours, equals, theirs = text.partition("=")
        if not (ours and equals and theirs):
            raise InputError(f"--map {text}: use OURS=THEIRS, such as input_ids=tokens.")
        if ours in pairs:
            raise InputError(f"--map {text}: {ours} is {pairs[ours]} already.")
        pairs[ours] = theirs
    return pairs

"""rope-export fuzz: draw layers and calls, and compare each with eager PyTorch."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rope_export.cli import output
from rope_export.errors import InputError

if TYPE_CHECKING:
    from rope_export.fuzz import Counterexample


DRAWN = ("runtime", "cache", "dtype", "count", "seed")
"""Parameters that tell what is drawn."""


def fuzz_lowerings(
    context: typer.Context,
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[LOWERING]...", help="Lowerings to draw from; all unless given."),
    ] = None,
    runtime: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A runtime to compare; may be repeated."),
    ] = None,
    cache: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A cache to draw from; may be repeated."),
    ] = None,
    dtype: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A dtype to draw from; may be repeated."),
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Examples to compare.")] = 50,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    example: Annotated[
        str | None,
        typer.Option(
            metavar="JSON", help="Compare this example alone, as an earlier run shows it."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="With --example: keep its artifact here.")
    ] = None,
    all_rows: Annotated[
        bool, typer.Option("--all", help="Show every row, not only the worst of each output.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Draw layers, weights and calls, export each and compare it with eager PyTorch."""
    if example is None and out is not None:
        raise InputError(f"--out {out}: it keeps the artifact of one example; give --example too.")
    if example is not None:
        _check_alone(context, names)
    with output.progress() as step:
        step("loading PyTorch", None)
        from rope_export.fuzz import Counterexample, Example, fuzz, judged

        if example is not None:
            shown = Example.from_json(example)
            report = judged(shown, out=out, locating=True)
        else:
            options: dict[str, Any] = {"runtimes": runtime or ("onnxruntime",), "caches": cache}
            options |= {} if dtype is None else {"dtypes": dtype}
            try:
                compared = fuzz(names, count=count, seed=seed, progress=step, **options)
            except Counterexample as found:
                return _found(found, as_json)
    if example is None:
        _print({"status": "passed", "compared": compared}, as_json)
        return 0
    if as_json:
        output.print_json(output.report_json(report, context))
    else:
        title = f"lowering {shown.lowering} against eager PyTorch"
        output.print_report(report, title, context, every_row=all_rows)
    return output.PASSED[report.status]


def _check_alone(context: typer.Context, names: list[str] | None) -> None:
    """Raises: InputError for what is to be drawn, beside an example."""
    if names:
        raise InputError(f"{' '.join(names)} and --example: an example names its lowering.")
    for parameter in context.command.params:
        value = context.params.get(str(parameter.name))
        if parameter.name in DRAWN and value not in (None, parameter.default, ()):
            flag = parameter.opts[0]
            raise InputError(f"{flag} and --example: an example has its own. Leave {flag} out.")


def _found(counterexample: "Counterexample", as_json: bool) -> int:
    example = counterexample.example
    if as_json:
        facts = {"status": "failed", "what": counterexample.what, "command": example.command}
        output.print_json({**facts, "example": example.to_json()})
    else:
        output.out().print(f"failed: {counterexample}", soft_wrap=True)
    return 1


def _print(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        output.print_json(facts)
    else:
        output.out().print(f"{facts['status']}: {facts['compared']} examples were compared.")

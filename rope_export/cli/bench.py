"""rope-export bench: how fast artifacts are beside PyTorch and beside the machine's limit."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from rope_export.cli import output
from rope_export.errors import InputError

STATUS = {"measured": 0, "wrong": 1, "nothing measured": 3}


def bench_artifacts(
    context: typer.Context,
    paths: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Artifacts' folders.")],
    batch: Annotated[str | None, typer.Option(help="Batch sizes, such as 1,4.")] = None,
    sequence: Annotated[
        str | None, typer.Option(help="Numbers of new tokens, such as 1,128.")
    ] = None,
    past: Annotated[
        str | None, typer.Option(help="Cached tokens, such as 128,2048; every combination is run.")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Run only this contender; may be repeated."),
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Run only this PyTorch baseline; may be repeated."),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Threads of a call; by default all cores.")
    ] = None,
    capacity: Annotated[
        int | None, typer.Option(help="Slots of fixed caches; by default as many as a shape fills.")
    ] = None,
    rounds: Annotated[int, typer.Option(help="Blocks of calls of each contender.")] = 7,
    seed: Annotated[int, typer.Option(help="Seed of the inputs and of the order of blocks.")] = 0,
    trust: Annotated[
        bool, typer.Option("--trust", help="Do not verify again files that have passed.")
    ] = False,
    memory: Annotated[
        bool, typer.Option("--memory", help="Measure the memory of each contender as well.")
    ] = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw latency over past: .png or .svg.")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Time artifacts beside PyTorch, after proving that they compute the same."""
    if markdown and as_json:
        raise InputError("--markdown and --json: stdout takes one of them.")
    with output.progress() as step:
        step("loading PyTorch", None)
        from rope_export import bench as benchmarks
        from rope_export.bench import plot as picture
        from rope_export.bench import table

        shapes = benchmarks.sweep(batch, sequence, past)
        if plot is not None:
            picture.check_target(plot, shapes)
        result = benchmarks.benchmark(
            paths,
            shapes=shapes,
            choice=benchmarks.Choice(only=tuple(only or ()), against=tuple(against or ())),
            plan=benchmarks.Plan(rounds=rounds, seed=seed),
            threads=threads,
            capacity=capacity,
            trust=trust,
            memory=memory,
            command=_command(context),
            progress=step,
        )
    if plot is not None:
        picture.draw(result, plot)
    if as_json:
        output.print_json(result.to_json())
    elif markdown:
        print(table.markdown(result), end="")
    else:
        output.out().print(table.rich_table(result))
    return STATUS[result.status]


def _command(context: typer.Context) -> str:
    """The command line that was given, for a record."""
    words = ["rope-export", "bench", *map(str, context.params["paths"])]
    for option in context.command.params:
        value = context.params.get(option.name or "")
        if option.param_type_name == "argument" or value in (option.default, None, False, []):
            continue
        for one in value if isinstance(value, list | tuple) else [value]:
            words += [option.opts[0]] if one is True else [option.opts[0], str(one)]
    return shlex.join(words)

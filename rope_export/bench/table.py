"""A benchmark as a table: for a terminal, or in Markdown for a record."""

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from rope_export.bench.markdown import table_lines
from rope_export.bench.result import Bench, Row

FIGURES = ("median ms", "rounds ms", "median, 95 %", "of limit")


def _columns(bench: Bench) -> tuple[str, ...]:
    return ("shape", "contender", *FIGURES, "tokens/s" if bench.decoders else "speed-up")


def rich_table(bench: Bench) -> RenderableType:
    """The benchmark for a terminal: every row, and below it what is needed to read it."""
    grid = Table(title=escape(title(bench)), title_justify="left")
    names = _columns(bench)
    for name in names[:2]:
        grid.add_column(name, overflow="fold")
    for name in names[2:]:
        grid.add_column(name, justify="right", no_wrap=True)
    grid.add_column("", overflow="fold")
    before = None
    for row in bench.rows:
        if before is not None and row.shape != before:
            grid.add_section()
        grid.add_row(*map(escape, _cells(row, bench)), _problem(row))
        before = row.shape
    return Group(grid, *(Text(line) for line in footer(bench)))


def markdown(bench: Bench) -> str:
    """The benchmark as Markdown, with the command that reprints it on top."""
    lines = [f"Reprinted by `{bench.command}`. {title(bench)}.", ""]
    versions = ", ".join(f"{name} {version}" for name, version in bench.machine.versions.items())
    lines += [f"{bench.machine.date[:10]}, {versions}.", ""]
    rows = []
    for row in bench.rows:
        cells = _cells(row, bench)
        if row.status != "measured":
            cells[2] = str(_problem(row))
        rows.append(cells)
    lines += table_lines(_columns(bench), rows)
    return "\n".join([*lines, "", *(f"- {line}" for line in footer(bench))]) + "\n"


def title(bench: Bench) -> str:
    """The machine in one line."""
    limits = bench.machine.limits
    return (
        f"{bench.machine.cpu}, {limits.threads} of {bench.machine.cores} cores, reads "
        f"{limits.bandwidth / 1e9:.1f} GB/s, multiplies {limits.rate / 1e9:.0f} GFLOP/s in float32"
    )


def footer(bench: Bench) -> Iterator[str]:
    """Legend, what was left out, memory and notes, a line each."""
    yield (
        "rounds: smallest and largest median of a block of calls. of limit: the time that reading "
        "weights and cache once, or the products, would take at these rates, over the median. "
        + (
            "A prompt, past 0, is timed up to its first token."
            if bench.decoders
            else "speed-up: over the best of PyTorch."
        )
    )
    for name, reason in bench.left_out.items():
        yield f"left out {name}: {reason}"
    for memory in bench.memory:
        figure = memory.reason if memory.peak is None else f"{memory.peak / 1e6:.0f} MB"
        yield f"memory of {memory.contender} at {memory.shape.name}: {figure}"
    yield from bench.notes


def _cells(row: Row, bench: Bench) -> list[str]:
    """A row's figures, empty where there are none; one not to be believed has a "?"."""
    timing, cells = row.timing, [row.shape.name, row.contender]
    if timing is None:
        return [*cells, *[""] * (len(FIGURES) + 1)]
    doubt = "" if bench.machine.quiet else "?"
    figure, digits = (row.tokens_per_second, 1) if bench.decoders else (row.ratio, 2)
    low, high = timing.interval
    return [
        *cells,
        _ms(timing.median),
        f"{_ms(timing.low)} - {_ms(timing.high)}",
        f"{_ms(low)} - {_ms(high)}",
        "" if row.of_limit is None else f"{100 * row.of_limit:.0f} %",
        "" if figure is None else f"{figure:.{digits}f}{doubt}",
    ]


def _problem(row: Row) -> Text:
    if row.status == "wrong":
        return Text(f"wrong: not measured ({row.reason})", "bold red")
    return Text("" if row.status == "measured" else f"cannot: {row.reason}")


def _ms(seconds: float) -> str:
    """Milliseconds in three digits."""
    value = 1e3 * seconds
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"

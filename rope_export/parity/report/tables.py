"""A report on a screen: the verdict and the worst rows, or every case."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, TypeVar

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from rope_export.parity.report.cells import SweptRow
from rope_export.parity.report.decoder_rows import (
    is_decoder,
    order_of,
    shown_failures,
    text_lines,
)
from rope_export.parity.report.lines import every_line, short_lines
from rope_export.parity.report.result import Report
from rope_export.parity.report.words import figure, kind_of, share
from rope_export.parity.rows import CALLS_FAILED, Row

MOST = 10
"""Worst rows that are shown, so that the whole fits a screen."""

GAP = 2
"""Blanks between two columns."""

MOST_CELLS = 20
"""Cells of a sweep whose failure is shown."""

Spell = Callable[[str], str]
R = TypeVar("R", bound=Row)


def summary(report: Report, title: str, spell: Spell = str) -> RenderableType:
    """The verdict, everything that failed, and the worst row of each runtime and output; of a
    whole decoder, of each kind of output: logits, text, hidden states of layers, caches.

    spell: rewrites the lines for those who read them.
    """
    parts: list[RenderableType] = [Text(spell(line)) for line in short_lines(report)]
    decoder = is_decoder(report)
    parts += [Text(line) for line in text_lines(report) if report.cells is None]
    failed, more = failures(report)
    if failed:
        parts.append(_Grid(failed, "failed", whole=True))
        parts += [] if more is None else [Text(more)]
    worst = worst_rows(report)
    if worst:
        what = "each kind of output" if decoder else "each output"
        parts.append(_Grid(worst[:MOST], f"{title}, the worst case of {what}"))
    if len(worst) > MOST:
        parts.append(Text(f"... and {len(worst) - MOST} outputs more."))
    return Group(*parts)


def table(report: Report, title: str, spell: Spell = str) -> RenderableType:
    """Every case and runtime by its worst row, of a whole decoder every row, then the verdict. What
    failed in one case after the other for one reason is a line of the verdict instead."""
    rows, column = _without_repeats(report), "output"
    if not is_decoder(report):
        rows, column = worst_of(rows, lambda x: (x.case, x.runtime)), "worst output"
    grid = Table(title=escape(title), title_justify="left")
    for name in ("case", "runtime", column, "metric"):
        grid.add_column(name, overflow="fold")
    for name in ("error", "eager's", "tolerance", "used"):
        grid.add_column(name, justify="right", no_wrap=True)
    grid.add_column("", no_wrap=True)
    for row in rows:
        names = (row.case, row.runtime, row.output, row.metric)
        errors = (row.error, row.eager_error, row.tolerance)
        grid.add_row(*map(escape, names), *map(figure, errors), share(row), _mark(row))
    return Group(grid, *(Text(spell(line)) for line in every_line(report)))


def failures(report: Report) -> tuple[list[Row], str | None]:
    """What failed: the worst row of each case, runtime and output, of a decoder's layers the first
    ones; and a sentence on others, if there are any."""
    failed = [row for row in _without_repeats(report) if row.status == "failed"]
    worst = worst_of(failed, lambda row: (row.case, row.runtime, row.output))
    if report.cells is not None:
        return _of_each_cell(failed)
    return shown_failures(worst) if is_decoder(report) else (worst, None)


def _of_each_cell(failed: Sequence[Row]) -> tuple[list[Row], str | None]:
    """The worst row of each cell that failed, and how many cells more there are."""
    own = [row for row in failed if isinstance(row, SweptRow)]
    worst: list[Row] = [*worst_of(own, lambda row: (row.artifact, row.runtime))]
    more = len(worst) - MOST_CELLS
    return worst[:MOST_CELLS], f"... and {more} cells more." if more > 0 else None


def worst_rows(report: Report) -> list[Row]:
    """The row of each runtime and output that passed and used most of its tolerance, the runtimes'
    before eager's, the largest share first; of a decoder one of each kind of output, logits and
    text first."""
    passed = [row for row in report.rows if row.status == "passed" and row.runtime != "file"]
    worst = worst_of(passed, lambda row: (row.runtime, kind_of(row.output)))
    return sorted(
        worst, key=lambda row: (row.runtime == "eager", row.runtime, order_of(row), -row.used)
    )


def worst_of(rows: Iterable[R], key: Callable[[R], tuple[str, ...]]) -> list[R]:
    """The row of each group that used most of its tolerance, failed rows first."""
    groups: dict[tuple[str, ...], list[R]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return [max(x, key=lambda row: (row.status == "failed", row.used)) for x in groups.values()]


def _without_repeats(report: Report) -> list[Row]:
    """The rows without those whose news is in the verdict: calls that failed, but the first on
    each runtime, and where float16 overflowed those in which eager's answer is not a number."""
    seen: set[str] = set()
    rows = []
    for row in report.rows:
        if report.overflow and not math.isfinite(row.eager_error):
            continue
        if row.metric == CALLS_FAILED:
            if row.runtime in seen:
                continue
            seen.add(row.runtime)
        rows.append(row)
    return rows


class _Grid:
    """Rows as wide as the console; names of cases that do not fit are cut, or wrapped if whole."""

    def __init__(self, rows: Sequence[Row], title: str, *, whole: bool = False) -> None:
        self.title = title
        self.overflow: Literal["fold", "ellipsis"] = "fold" if whole else "ellipsis"
        self.names = {
            "runtime": [row.runtime for row in rows],
            "output": [row.output for row in rows],
            "case": [row.case for row in rows],
        }
        self.figures = {
            "error": [figure(row.error) for row in rows],
            "tolerance": [figure(row.tolerance) for row in rows],
            "used": [share(row) for row in rows],
        }

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        columns = self.names | self.figures
        widths = {name: max(map(len, (name, *cells))) for name, cells in columns.items()}
        others = sum(widths.values()) - widths["case"] + GAP * (len(widths) - 1)
        widths["case"] = max(GAP, min(widths["case"], options.max_width - others))
        yield Text()
        yield Text(self.title)
        grid = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="dim")
        for name, width in widths.items():
            justify: Literal["left", "right"] = "right" if name in self.figures else "left"
            grid.add_column(
                name,
                justify=justify,
                width=width,
                no_wrap=self.overflow == "ellipsis",
                overflow=self.overflow,
            )
        for row in zip(*columns.values(), strict=True):
            grid.add_row(*map(escape, row))
        yield grid


def _mark(row: Row) -> Text:
    return Text("ok", "green") if row.status == "passed" else Text("FAILED", "bold red")

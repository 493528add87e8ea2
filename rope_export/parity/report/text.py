"""A report as a table that a person can read: one line a case and runtime, its worst figure."""

import math
from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from rope_export.parity.report.result import Report
from rope_export.parity.rows import CALLS_FAILED, Row


def table(report: Report, title: str) -> RenderableType:
    """Every case and runtime by its worst row, then the verdict. What failed in one case after the
    other for one reason is a line of the verdict instead.

    "used" is the share of the tolerance: above 100 % the row has failed.
    """
    grid = Table(title=escape(title), title_justify="left", caption_justify="left")
    for name in ("case", "runtime", "worst output", "metric"):
        grid.add_column(name, overflow="fold")
    for name in ("error", "eager's", "tolerance", "used"):
        grid.add_column(name, justify="right", no_wrap=True)
    grid.add_column("", no_wrap=True)
    for row, worst_passed in _worst(_telling(report)):
        mark = Text("ok", "green") if worst_passed else Text("FAILED", "bold red")
        grid.add_row(
            *map(escape, (row.case, row.runtime, row.output, row.metric)),
            _figure(row.error),
            _figure(row.eager_error),
            _figure(row.tolerance),
            f"{100 * row.used:.0f} %" if row.used < 1e4 else "> 1e6 %",
            mark,
        )
    return Group(grid, *(Text(line) for line in verdict(report)))


def verdict(report: Report) -> Iterator[str]:
    """What it comes to, in a few lines."""
    failed = sum(row.status == "failed" for row in report.rows)
    yield (
        f"{report.status}: {len(report.rows)} comparisons, {failed} failed; weights "
        f"{report.weights}"
        + (" (the source is gone; give it with --source)." if report.weights == "unproven" else ".")
    )
    yield from report.reading.lines()
    if report.numbers == "unverified":
        proven = "structure and ONNX proven" if report.passed else "nothing proven"
        yield (
            f"numbers unverified: {proven}; on a machine with the GPU, rope-export verify adds "
            f"what the plan computes."
        )
    elif report.numbers is not None:
        yield f"numbers {report.numbers}."
    if report.quantization_error is not None:
        yield (
            "beside the source's own weights, in float64: "
            + ", ".join(
                f"{metric} {value:.1e}" for metric, value in report.quantization_error.items()
            )
            + " (quantization error; not judged)."
        )
    for skipped in report.skipped:
        yield f"skipped {skipped['runtime']}: {skipped['reason']}"
    yield from report.left_out
    for hidden in report.not_visible:
        yield f"not visible: {hidden['feature']}: {hidden['reason']}."
    yield from report.problems


def _telling(report: Report) -> list[Row]:
    """Without rows whose only news is in a line of the verdict: calls that failed, but the first on
    each runtime, and where float16 overflowed those in which eager's answer is not a number."""
    told: set[str] = set()
    rows = []
    for row in report.rows:
        if report.overflow and not math.isfinite(row.eager_error):
            continue
        if row.metric == CALLS_FAILED:
            if row.runtime in told:
                continue
            told.add(row.runtime)
        rows.append(row)
    return rows


def _worst(rows: list[Row]) -> Iterator[tuple[Row, bool]]:
    """The row of each case and runtime that used most of its tolerance, failed rows first."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.case, row.runtime), []).append(row)
    for group in groups.values():
        worst = max(group, key=lambda row: (row.status == "failed", row.used))
        yield worst, worst.status == "passed"


def _figure(value: float) -> str:
    return "0" if value == 0 else f"{value:.1e}"

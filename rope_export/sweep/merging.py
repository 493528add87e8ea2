"""One report of all cells, as `verify` has it of one artifact."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from rope_export.parity.report.cells import SHARED, Cells, JudgedCell, Status, SweptRow
from rope_export.parity.report.result import Report
from rope_export.reading.verdict import Reading
from rope_export.sweep.cell import Cell
from rope_export.sweep.judging import Result

UNLIKE = "transformers reads the source otherwise"


def merged(cells: Mapping[Cell, Result], errors: Mapping[Cell, str]) -> Report:
    """The report. cells: every cell in the order of the matrix, but for those whose comparison was
    not finished. errors: of these, why."""
    results = {cell: cells.get(cell) for cell in (*cells, *errors)}
    every = [
        _crashed(cell, errors[cell]) if result is None else _judged(cell, result)
        for cell, result in results.items()
    ]
    compared = {c: r for c, r in cells.items() if r.status in ("passed", "failed")}
    titled = [(cell.export.title, result) for cell, result in compared.items()]
    return Report(
        weights="proven" if {r.weights for _, r in titled} == {"proven"} else "unproven",
        reading=_reading(titled),
        rows=list(_rows(compared)),
        problems=_each(titled, "problems"),
        left_out=_each(titled, "left_out"),
        not_visible=_not_visible(result for _, result in titled),
        overflow=any(result.overflow for _, result in titled),
        located=tuple(_located(titled)),
        cells=Cells(every=tuple(every)),
    )


def _judged(cell: Cell, result: Result) -> JudgedCell:
    status: Status = result.status
    reason = result.reason
    if status == "failed" and result.reading.status == "failed":
        reason = UNLIKE
    return JudgedCell(
        artifact=cell.export.title,
        runtime=cell.runtime,
        status=status,
        reason=reason,
        comparisons=result.comparisons,
        used=max((row.used for row in result.rows if row.runtime == cell.runtime), default=0.0),
        seconds=result.seconds,
    )


def _crashed(cell: Cell, error: str) -> JudgedCell:
    title, runtime = cell.export.title, cell.runtime
    return JudgedCell(artifact=title, runtime=runtime, status="crashed", reason=error)


def _rows(cells: Mapping[Cell, Result]) -> Iterator[SweptRow]:
    """The rows of every cell; those of eager once for each artifact."""
    seen: set[tuple[str, Any]] = set()
    for cell, result in cells.items():
        title = cell.export.title
        for row in result.rows:
            key = (title, row)
            if row.runtime in SHARED and key in seen:
                continue
            seen.add(key)
            facts = vars(row) | {"case": f"{title}: {row.case}"}
            yield SweptRow(**facts, artifact=title, within=row.case)


def _reading(results: Sequence[tuple[str, Result]]) -> Reading:
    """What transformers reads as we do: "failed" if it differs on one artifact, "unproven" if it
    could not be asked about one."""
    readings = {title: result.reading for title, result in results}
    against = next((x.against for x in readings.values() if x.against), None)
    differing = {title: x for title, x in readings.items() if x.status == "failed"}
    if differing:
        differences = tuple(
            replace(difference, case=f"{title}: {difference.case}")
            for title, reading in differing.items()
            for difference in reading.differences
        )
        return Reading(status="failed", against=against, differences=differences)
    open_ones = {title: x for title, x in readings.items() if x.status == "unproven"}
    if not open_ones:
        return Reading(status="proven" if readings else "unproven", against=against)
    title, first = next(iter(open_ones.items()))
    count = f"{len(open_ones)} of {len(readings)} artifacts"
    why = f"of {count}, the first {title}" + (f" ({first.reason})" if first.reason else "")
    return Reading(status="unproven", against=against, reason=why)


def _each(results: Iterable[tuple[str, Result]], name: str) -> list[str]:
    """Lines of the artifacts, each once, with the artifact where it has it alone."""
    titles: dict[str, dict[str, None]] = {}
    for title, result in results:
        for line in getattr(result, name):
            titles.setdefault(line, {})[title] = None
    return [
        f"{next(iter(own))}{f' and {len(own) - 1} more' if len(own) > 1 else ''}: {line}"
        for line, own in titles.items()
    ]


def _not_visible(results: Iterable[Result]) -> list[dict[str, str]]:
    found = [tuple(sorted(x.items())) for result in results for x in result.not_visible]
    return [dict(x) for x in dict.fromkeys(found)]


def _located(results: Iterable[tuple[str, Result]]) -> Iterator[Any]:
    seen = set()
    for title, result in results:
        for one in result.located:
            named = replace(one, case=f"{title}: {one.case}")
            if named not in seen:
                seen.add(named)
                yield named

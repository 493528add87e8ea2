"""A report in sentences: the verdict first, then what it is limited to."""

from collections.abc import Iterator, Sequence

from rope_export.parity.report.result import Report

TWO_RECORDINGS = "two recordings were compared"
"""Why the reading is unproven where there is no artifact."""


def every_line(report: Report) -> Iterator[str]:
    """The verdict, and everything that was skipped, left out or not visible, with its reason."""
    yield from _verdict(report)
    if report.cells is not None:
        yield from report.cells.lines()
    for skipped in report.skipped:
        yield f"skipped {skipped['runtime']}: {skipped['reason']}"
    yield from report.left_out
    for hidden in report.not_visible:
        yield f"not visible: {hidden['feature']}: {hidden['reason']}."
    yield from report.problems
    yield from (x.line for x in report.located)


def short_lines(report: Report) -> Iterator[str]:
    """The lines of `every_line`, those without effect on the verdict without their reason."""
    if report.status == "nothing compared":
        yield from every_line(report)
        return
    yield from _verdict(report)
    if report.cells is not None:
        yield from report.cells.short_lines()
    yield from report.problems
    yield from (x.line for x in report.located)
    yield from _named("skipped", [x["runtime"] for x in report.skipped])
    yield from _named("not visible", list(dict.fromkeys(x["feature"] for x in report.not_visible)))
    if report.left_out:
        yield f"left out: {len(report.left_out)}, the first: {report.left_out[0]}"


def _verdict(report: Report) -> Iterator[str]:
    failed = sum(row.status == "failed" for row in report.rows)
    gone = ""
    if report.weights == "unproven" and report.reading.reason != TWO_RECORDINGS:
        gone = " (they were read from the file; give the source with `source`)"
    counts = f"{len(report.rows)} comparisons, {failed} failed"
    if report.cells is not None:
        compared = sum(cell.comparisons for cell in report.cells.every)
        counts = f"{report.cells.counts()}; {compared} comparisons"
    yield f"{report.status}: {counts}; weights {report.weights}{gone}."
    yield from report.reading.lines()
    if report.numbers == "unverified":
        proven = "structure and ONNX proven" if report.passed else "nothing proven"
        yield (
            f"numbers unverified: {proven}; on a machine with the GPU, verify adds what the plan "
            f"computes."
        )
    elif report.numbers is not None:
        yield f"numbers {report.numbers}."
    if report.growth is not None:
        yield from report.growth.lines()
    if report.quantization_error is not None:
        figures = ", ".join(f"{name} {x:.1e}" for name, x in report.quantization_error.items())
        yield f"quantization error, against the source's own weights: {figures} (not judged)."


def _named(what: str, names: Sequence[str]) -> Iterator[str]:
    if names:
        yield f"{what}: {', '.join(names)}."

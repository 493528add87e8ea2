"""A benchmark as a picture: latency of one new token over the length of the past."""

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rope_export import paths
from rope_export.artifacts import swap
from rope_export.bench.result import Bench, Row
from rope_export.bench.shapes import Shape
from rope_export.bench.table import title
from rope_export.errors import InputError, extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".png", ".svg")

MADE_BY = "rope_export bench"
"""The creator in the metadata of every picture; a picture without it is not replaced."""

SAME = 1.02
"""Ratio of two limits up to which they are drawn as one line."""


def check_target(path: Path, shapes: Sequence[Shape]) -> None:
    """See to it that the picture can be drawn and written, before anything is measured.

    Raises: InputError for the suffix, the folder, the shapes, or a file that is no such picture;
        UnavailableError where matplotlib is missing.
    """
    with paths.named(path):
        paths.utf8(path)
        _check_file(path)
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"`plot`={path}: the picture is one of {', '.join(SUFFIXES)}.")
    if not path.parent.is_dir():
        raise InputError(f"`plot`={path}: there is no folder {path.parent}.")
    if not any(drawable(shape) for shape in shapes):
        raise InputError(
            f"`plot`={path}: it shows calls of one new token with a past; give `sequence`=1 and "
            f"`past`=1 or more."
        )
    with extra("report", "plotting"):
        import matplotlib.figure  # noqa: F401


def _check_file(path: Path) -> None:
    """Raises: InputError if writing would lose something that is no picture of a benchmark."""
    real = Path(os.path.realpath(path))
    if not os.path.lexists(real):
        os.lstat(path.parent)
        return
    if not real.is_file() or MADE_BY.encode() not in real.read_bytes():
        raise InputError(
            f"`plot`={path}: is there already, and is no picture of a benchmark. Give another file."
        )


def drawable(shape: Shape) -> bool:
    """Whether a shape has a place on a logarithmic axis of the past of one new token."""
    return shape.sequence == 1 and shape.past > 0


def draw(bench: Bench, path: Path) -> None:
    """Write the picture: a panel a batch, a line a contender, its band from the fastest round to
    the slowest, and dashed the limit of the machine."""
    with extra("report", "plotting"):
        import matplotlib
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogLocator, NullFormatter
    rows = [row for row in bench.rows if drawable(row.shape)]
    batches = sorted({row.shape.batch for row in rows})
    figure = Figure(figsize=(2 + 5 * len(batches), 4.5), layout="constrained")
    panels = figure.subplots(1, len(batches), sharey=True, squeeze=False)[0]
    for panel, batch in zip(panels, batches, strict=True):
        _draw(panel, [row for row in rows if row.shape.batch == batch])
        panel.set_title(f"batch {batch}", fontsize="medium")
    panels[0].set_ylabel("milliseconds a call")
    panels[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panels[0].yaxis.set_major_formatter("{x:g}")
    panels[0].yaxis.set_minor_formatter(NullFormatter())
    shown = [panel.get_legend_handles_labels() for panel in panels]
    handles = {
        label: line for lines, labels in shown for line, label in zip(lines, labels, strict=True)
    }
    figure.legend(handles.values(), handles, loc="outside right center", fontsize="small")
    figure.suptitle(title(bench), fontsize="small")
    # The same figures give the same file.
    kind = path.suffix.lower().removeprefix(".")
    metadata = {"Date": None, "Creator": MADE_BY} if kind == "svg" else {"Software": MADE_BY}
    drawn = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "rope_export"}):
        figure.savefig(drawn, dpi=150, metadata=metadata, format=kind)
    _check_file(path)
    swap.write(Path(os.path.realpath(path)), drawn.getvalue())


def _draw(panel: "Axes", rows: Sequence[Row]) -> None:
    limits: dict[str, list[tuple[int, float]]] = {}
    colours: dict[str, str] = {}
    for at, name in enumerate(dict.fromkeys(row.contender for row in rows)):
        own = sorted((r for r in rows if r.contender == name), key=lambda r: r.shape.past)
        timed = [(r.shape.past, r.timing) for r in own if r.timing is not None]
        colour = colours[name] = f"C{at}"
        if timed:
            pasts = [past for past, _ in timed]
            medians = [1e3 * t.median for _, t in timed]
            panel.plot(pasts, medians, marker="o", markersize=4, color=colour, label=name)
            low, high = [1e3 * t.low for _, t in timed], [1e3 * t.high for _, t in timed]
            panel.fill_between(pasts, low, high, color=colour, alpha=0.15, linewidth=0)
        line = [(r.shape.past, 1e3 * r.limit) for r in own if r.limit is not None]
        if line and not any(_close(line, other) for other in limits.values()):
            limits[name] = line
    for name, line in limits.items():
        # Whoever stores fewer bytes has a limit of its own.
        label = f"limit of {name}" if len(limits) > 1 else "limit of the machine"
        colour = colours[name] if len(limits) > 1 else "black"
        panel.plot(*zip(*line, strict=True), color=colour, ls="--", linewidth=1, label=label)
    pasts = sorted({row.shape.past for row in rows})
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    panel.set_xticks(pasts, [str(past) for past in pasts])
    panel.set_xlabel("cached entries")
    panel.grid(alpha=0.3, which="both")


def _close(one: list[tuple[int, float]], other: list[tuple[int, float]]) -> bool:
    """Whether two lines of (past, ms) cannot be told apart."""
    a, b = dict(one), dict(other)
    return a.keys() <= b.keys() and all(1 / SAME < a[x] / b[x] < SAME for x in a)

"""The plots of a report, each as SVG that takes its colours from the page around it."""

import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rope_export.parity.metrics import METRICS
from rope_export.parity.report.spread import EDGES, Map, OverPositions
from rope_export.parity.report.words import kind_of
from rope_export.parity.rows import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {
    "ink": "#010203",
    "muted": "#040506",
    "line": "#070809",
    "bad": "#0a0b0c",
    "series-1": "#0d0e0f",
    "series-2": "#101112",
    "series-3": "#131415",
    "series-4": "#161718",
}
"""What is drawn in place of each colour of the page, which the browser then puts in."""

SERIES = tuple(COLOURS[f"series-{x}"] for x in range(1, 5))

SIZE = (4.6, 3.1)
"""Inches of a plot: on a telephone it is shown as large as it was drawn."""

TICKS = {0.5: "0", 1: "1", 10: "10", 1e2: "100", 1e3: "1k", 1e4: "10k", 1e5: "100k", 1e6: "1M"}
"""Positions that are named; 0 has no place on a logarithmic axis but before 1."""

SMALLEST = 1e-3
"""Share of a tolerance that a map shows as nothing."""


def errors_plot(rows: Sequence[Row]) -> str:
    """The error of each case on one runtime, in the order in which they ran, and its tolerance."""
    rows = [row for row in rows if row.metric in METRICS and row.tolerance > 0]
    places = {case: at for at, case in enumerate(dict.fromkeys(row.case for row in rows), 1)}
    outputs: dict[str, dict[str, Row]] = {}
    for row in rows:  # of the metrics, and of a decoder's layers, the one that used most
        worst = outputs.setdefault(kind_of(row.output), {})
        if row.case not in worst or row.used > worst[row.case].used:
            worst[row.case] = row

    def draw(axes: "Axes") -> None:
        for (output, worst), colour in zip(outputs.items(), _cycled(), strict=False):
            x = [places[case] for case in worst]
            errors = _drawable([row.error for row in worst.values()])
            allowed = [row.tolerance for row in worst.values()]
            axes.plot(x, allowed, "_", color=colour, alpha=0.6, markersize=5)
            axes.plot(x, errors, "o", color=colour, markersize=2.6, label=output)
        failed = [row for x in outputs.values() for row in x.values() if row.status == "failed"]
        if failed:
            top = _drawable([row.error for row in failed])
            axes.plot([places[x.case] for x in failed], top, "x", color=COLOURS["bad"], ms=4.5)
        _logarithmic(axes)
        axes.set_xlabel(f"cases 1 to {len(places)}; a dash is the tolerance of the dot below it")
        axes.set_ylabel("relative error")
        axes.grid(axis="y")

    return _svg(draw, f"errors {rows[0].runtime if rows else ''}", legend=True)


def positions_plot(output: str, runtimes: Mapping[str, OverPositions]) -> str:
    """The largest error of a token at each position, by runtime, with what bounds eager's."""

    def draw(axes: "Axes") -> None:
        from matplotlib.ticker import NullLocator

        x = np.where(EDGES == 0, 0.5, EDGES)
        for at, (runtime, one) in enumerate(_eager_last(runtimes)):
            bound = one.bound > 0
            if at == 0 and bound.any():
                band = (x[bound], one.lowest[bound], one.bound[bound])
                axes.fill_between(*band, color=COLOURS["muted"], alpha=0.16, linewidth=0)
                axes.plot(x[bound], one.bound[bound], color=COLOURS["muted"], lw=1, ls="--",
                          label="rounding bound")  # fmt: skip
            seen = one.error > 0
            colour = COLOURS["muted"] if runtime == "eager" else SERIES[at % len(SERIES)]
            errors = _drawable(one.error[seen])
            axes.plot(x[seen], errors, "o-", color=colour, lw=0.9, ms=2.6, label=runtime)
            endless = ~np.isfinite(one.error[seen])
            axes.plot(x[seen][endless], np.array(errors)[endless], "x", color=COLOURS["bad"])
        axes.set_xscale("log")
        _logarithmic(axes)
        last = max((x[one.error >= 0].max() for one in runtimes.values()), default=1)
        axes.set_xlim(0.4, 1.6 * last)
        ticks = {at: name for at, name in TICKS.items() if at <= last}
        axes.set_xticks([*ticks], [*ticks.values()])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("size of the position (log)")
        axes.set_ylabel("largest error of a token")
        axes.grid()

    return _svg(draw, f"positions {output}", legend=True)


def map_plot(one: Map) -> str:
    """Where the error lies: a row a token, a column a part of a head or some channels."""

    def draw(axes: "Axes") -> None:
        from matplotlib.colors import LogNorm
        from matplotlib.ticker import MaxNLocator

        batch, sequence = one.tokens
        width = one.heads if one.heads > 1 else one.channels
        values = np.ma.masked_less(np.where(np.isinf(one.values), 1e9, one.values), 0)
        image = axes.imshow(
            values.clip(SMALLEST, None),
            aspect="auto",
            interpolation="none",
            extent=(0, width, batch * sequence, 0),
            cmap=_shares(),
            norm=LogNorm(SMALLEST, 1 / SMALLEST, clip=True),
        )
        if one.heads > 1:
            step = -(-one.heads // 12)
            heads = range(0, one.heads, step)
            axes.set_xticks([x + 0.5 for x in heads], [str(x) for x in heads])
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        if batch > 1:
            step = -(-batch // 8)
            rows = range(0, batch, step)
            axes.set_yticks([(x + 0.5) * sequence for x in rows], [f"row {x}" for x in rows])
            for x in range(1, batch):
                axes.axhline(x * sequence, color=COLOURS["muted"], lw=0.5)
        axes.set_xlabel("head" if one.heads > 1 else "channel")
        axes.set_ylabel(_tokens(sequence) if batch > 1 else "token")
        assert axes.figure is not None
        bar = axes.figure.colorbar(image, ax=axes, ticks=[1e-2, 1, 1e2], pad=0.02, aspect=30)
        bar.ax.set_yticklabels(["1 %", "100 %", "10⁴ %"])
        bar.ax.axhline(1, color=COLOURS["ink"], lw=1)
        bar.outline.set_edgecolor(COLOURS["line"])

    return _svg(draw, f"map {one.row.runtime} {one.row.output}", legend=False)


def _tokens(count: int) -> str:
    return "1 token each" if count == 1 else f"{count} tokens each"


def _shares() -> Any:
    """Colours of shares of a tolerance on a logarithmic axis, whose middle is the whole of it:
    below blue that fades into any page, above amber to red."""
    from matplotlib.colors import LinearSegmentedColormap

    stops = [
        (0.0, (0.23, 0.51, 0.96, 0.0)),
        (0.3, (0.23, 0.51, 0.96, 0.25)),
        (0.499, (0.23, 0.51, 0.96, 0.9)),
        (0.501, (0.96, 0.62, 0.04, 1.0)),
        (0.75, (0.86, 0.15, 0.15, 1.0)),
        (1.0, (0.6, 0.05, 0.3, 1.0)),
    ]
    return LinearSegmentedColormap.from_list("shares", stops)


def _logarithmic(axes: "Axes") -> None:
    """A logarithmic y axis, of nothing as well: where every error is zero. Its powers are plain
    text, since names on the page are no formulas."""
    from matplotlib.ticker import LogFormatter

    class Powers(LogFormatter):
        def __call__(self, x: float, pos: int | None = None) -> str:
            return power(x) if super().__call__(x, pos) else ""

    if not any(np.any(np.asarray(line.get_ydata(), float) > 0) for line in axes.lines):
        axes.set_ylim(1e-9, 1)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(Powers())
    axes.yaxis.set_minor_formatter(Powers(labelOnlyBase=False))


RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def power(x: float) -> str:
    """A positive number as people write it, such as 2·10⁻⁶."""
    digit, _, exponent = f"{x:.0e}".partition("e")
    raised = f"10{str(int(exponent)).translate(RAISED)}"
    return raised if digit == "1" else f"{digit}·{raised}"


def _drawable(errors: Iterable[float]) -> list[float]:
    """Errors with what is not finite above all others, and zero left out."""
    values = list(map(float, errors))
    largest = max((x for x in values if np.isfinite(x)), default=1.0) or 1.0
    return [x if 0 < x < np.inf else np.nan if x == 0 else 30 * largest for x in values]


def _eager_last(runtimes: Mapping[str, OverPositions]) -> Iterator[tuple[str, OverPositions]]:
    yield from sorted(runtimes.items(), key=lambda item: item[0] == "eager")


def _cycled() -> Iterator[str]:
    while True:
        yield from SERIES


def _svg(draw: Callable[["Axes"], None], name: str, *, legend: bool) -> str:
    """What `draw` draws, as an element of a page: no colour, font or identifier of its own."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_style(name)):
        figure: Figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.subplots()
        draw(axes)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        if legend and axes.get_legend_handles_labels()[0]:
            figure.legend(loc="outside upper center", ncols=3, fontsize=8, frameon=False,
                          labelcolor=COLOURS["ink"])  # fmt: skip
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None})
    return _of_the_page(drawn.getvalue(), name)


def _style(name: str) -> Any:
    muted, line = COLOURS["muted"], COLOURS["line"]
    return {
        "svg.fonttype": "none",
        "text.parse_math": False,  # names of runtimes and outputs are no formulas
        "svg.hashsalt": name,
        "text.color": COLOURS["ink"],
        "axes.labelcolor": muted,
        "axes.edgecolor": line,
        "axes.linewidth": 0.8,
        "axes.labelsize": 9,
        "xtick.color": line,
        "ytick.color": line,
        "xtick.labelcolor": muted,
        "ytick.labelcolor": muted,
        "xtick.labelsize": 8,
        "ytick.labelsize": 8,
        "grid.color": line,
        "grid.linewidth": 0.5,
    }


def _of_the_page(svg: str, name: str) -> str:
    """The element alone, its colours those of the page, identifiers only where they are used."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    used = set(re.findall(r"#([\w-]+)", svg))
    salt = re.sub(r"\W+", "-", name)
    svg = re.sub(r' id="([^"]+)"', lambda x: f' id="{salt}-{x[1]}"' if x[1] in used else "", svg)
    for colour, drawn in COLOURS.items():
        svg = svg.replace(drawn, f"var(--{colour})")
    svg = re.sub(r"(href=\"#|url\(#)", rf"\g<1>{salt}-", svg)
    return re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)

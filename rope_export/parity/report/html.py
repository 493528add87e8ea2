"""A report as one page that needs no network: verdict, what is wrong where, plots, every row."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from rope_export.errors import extra
from rope_export.parity.report.cells import SweptRow
from rope_export.parity.report.lines import every_line
from rope_export.parity.report.result import Report
from rope_export.parity.report.tables import failures, worst_rows
from rope_export.parity.report.words import figure, share
from rope_export.parity.rows import Row

TEMPLATE = Path(__file__).with_name("page.html")

MARK = '<meta name="generator" content="rope_export verify">'
"""Near the beginning of every such page; without it a file is not replaced."""

MAPS = 8
"""Maps that are drawn; of a decoder, or where everything failed, there are more."""

WORDS = {"passed": "Passed", "failed": "Failed", "nothing compared": "Nothing compared"}

KINDS = {"layers": "hidden states after layers", "present": "caches of layers"}
"""What every layer of a decoder has."""

GREY = (
    "Grey: from the lowest to the highest bound that rounding alone sets, by the theory of the "
    "acceptance rule."
)

SHARE = "As a share of the reference's largest number. "

UNITS = (
    "Errors and the reference in units of what rounding may do to each number, as a share of the "
    "reference's largest. "
)
"""Of every layer of a decoder, whose few massive numbers would hide the errors of all others."""

Spell = Callable[[str], str]
Command = Callable[[Row | None], str]


def check_html() -> None:
    """Raises: UnavailableError where a package is missing that the page is made with."""
    with extra("report", "a report with plots"):
        import jinja2  # noqa: F401
        import matplotlib.figure  # noqa: F401


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A picture with what it shows, and a sentence about how to read it."""

    title: str
    svg: str
    reading: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """The rows of one case on one runtime, with the command that compares them again; of a sweep
    those of one artifact."""

    case: str
    runtime: str
    rows: tuple[Row, ...]
    command: str

    @cached_property
    def worst(self) -> Row:
        return max(self.rows, key=lambda row: (row.status == "failed", row.used))

    @property
    def failed(self) -> bool:
        return self.worst.status == "failed"


def as_html(
    report: Report,
    title: str,
    command: Command,
    spell: Spell = str,
    facts: Mapping[str, str] | None = None,
) -> str:
    """The page.

    title: what was compared. command: reproduces a row, or the whole. spell: rewrites sentences for
    those who read them. facts: of the artifact, the machine and the packages, by name.
    """
    import jinja2

    page = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    ).from_string(TEMPLATE.read_text(encoding="utf-8"))
    page.globals.update(figure=figure, share=share, width=_width)
    verdict, *lines = (spell(line) for line in every_line(report))
    failed, more = failures(report)
    located = {spell(x.line) for x in report.located}
    return page.render(
        report=report,
        title=title,
        mark=MARK,
        word=WORDS[report.status],
        verdict=verdict,
        lines=[line for line in lines if line not in located],
        failed=failed,
        more=more,
        worst=worst_rows(report),
        plots=list(_plots(report)),
        maps=list(_maps(report)),
        groups=_groups(report.rows, command),
        facts=facts or {},
        command=command(None),
    )


def _plots(report: Report) -> Iterator[Plot]:
    from rope_export.parity.report import plots

    runtimes = dict.fromkeys(row.runtime for row in report.rows)
    for runtime in sorted(runtimes.keys() - {"file"}, key=lambda x: (x == "eager", x)):
        yield Plot(
            title=f"Error and tolerance on {runtime}",
            svg=plots.errors_plot([row for row in report.rows if row.runtime == runtime]),
            reading="Each dot is an output of a case; it passes below the dash of its colour.",
        )
    positions = {} if report.spread is None else report.spread.positions
    for output in dict.fromkeys(output for _, output in positions):
        own = {runtime: one for (runtime, name), one in positions.items() if name == output}
        bounded = any(np.any(one.bound > 0) for one in own.values())
        yield Plot(
            title=f"Error over position: {KINDS.get(output, output)}",
            svg=plots.positions_plot(output, own),
            reading=(UNITS if output in KINDS else SHARE) + (GREY if bounded else ""),
        )


def _maps(report: Report) -> Iterator[Plot]:
    from rope_export.parity.report import plots

    worst = [] if report.spread is None else list(report.spread.worst())
    for one in worst[:MAPS]:
        row = one.row
        yield Plot(
            title=f"{row.output} on {row.runtime}",
            svg=plots.map_plot(one),
            reading=f"{row.case}: {share(row)} of the tolerance where it is largest.",
        )


def _groups(rows: Iterable[Row], command: Command) -> list[Group]:
    """Rows by case, or artifact, and by runtime; first what failed or used most of its
    tolerance."""
    together: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        name = row.artifact if isinstance(row, SweptRow) else row.case
        together.setdefault((name, row.runtime), []).append(row)
    groups = [
        Group(case=case, runtime=runtime, rows=tuple(own), command=command(own[0]))
        for (case, runtime), own in together.items()
    ]
    return sorted(groups, key=lambda x: (not x.failed, x.runtime == "eager", -x.worst.used))


def _width(row: Row) -> int:
    """How long the bar of a row is, in hundredths of what is full at the tolerance."""
    return round(100 * min(1.0, row.used))

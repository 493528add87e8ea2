"""A report as Markdown, for a pull request: the verdict, what failed, and the worst rows."""

from collections.abc import Callable, Iterable, Iterator, Sequence

from rope_export.parity.report.lines import every_line
from rope_export.parity.report.result import Report
from rope_export.parity.report.tables import MOST, failures, worst_rows
from rope_export.parity.report.words import figure, share
from rope_export.parity.rows import Row

MARK = "<!-- rope_export verify -->"
"""The first line of every such file; without it a file is not replaced."""

SIGNS = {"passed": "✅", "failed": "❌", "nothing compared": "⚠️"}

FAILED = 40
"""Failed rows that are listed: a comment on a pull request has 65,536 characters."""

SENTENCES = 40
"""Lines of the verdict that are listed."""

Spell = Callable[[str], str]
Command = Callable[[Row | None], str]


def as_markdown(report: Report, title: str, command: Command, spell: Spell = str) -> str:
    """The text. command: reproduces a row, or the whole. spell: rewrites sentences for those who
    read them."""
    return "\n".join(_lines(report, title, command, spell)) + "\n"


def _lines(report: Report, title: str, command: Command, spell: Spell) -> Iterator[str]:
    verdict, *rest = (spell(line) for line in every_line(report))
    yield MARK
    yield f"### {SIGNS[report.status]} {_text(title)}"
    yield ""
    yield f"**{_text(verdict)}**"
    yield ""
    yield from (f"- {_text(line)}" for line in rest[:SENTENCES])
    if len(rest) > SENTENCES:
        yield f"- … and {len(rest) - SENTENCES} lines more."
    failed, more = failures(report)
    if failed:
        yield from _table("Failed", failed[:FAILED])
        if len(failed) > FAILED:
            yield f"\n… and {len(failed) - FAILED} failed rows more."
        if more is not None:
            yield f"\n{_text(more)}"
        yield "\nThe first of them again:"
        yield from _code(command(failed[0]))
    worst = worst_rows(report)
    if worst:
        yield from _table("The worst case of each output", worst[:MOST])
    yield "\nAll of it again:"
    yield from _code(command(None))


def _table(title: str, rows: Iterable[Row]) -> Iterator[str]:
    heads = ("runtime", "output", "case", "metric", "error", "tolerance", "used")
    yield f"\n**{title}**\n"
    yield _line(heads)
    yield "|---|---|---|---|--:|--:|--:|"
    for row in rows:
        names = (row.runtime, row.output, row.case, row.metric)
        yield _line((*map(_text, names), figure(row.error), figure(row.tolerance), share(row)))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _code(command: str) -> Iterator[str]:
    yield from ("", "```sh", command, "```")


def _text(words: str) -> str:
    """Words without what Markdown would take for its own."""
    for sign in "\\`*_|<>[]":
        words = words.replace(sign, f"\\{sign}")
    return " ".join(words.split())

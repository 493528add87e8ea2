"""The cells of a sweep: what became of each artifact on each runtime."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from rope_export.parity.report.words import percent
from rope_export.parity.rows import Row

COMPARED = ("passed", "failed", "crashed")
"""What becomes of a cell that is counted; refused and skipped ones are not."""

SHARED = ("eager", "file")
"""What the rows are of that all runtimes of an artifact have in common."""

SHOWN = 3
"""Cells of one reason that the lines of a verdict name."""

Status = Literal["passed", "failed", "crashed", "refused", "skipped"]


@dataclass(frozen=True, kw_only=True)
class SweptRow(Row):
    """A row of one artifact among many. artifact: its title, which stands before the case as well.
    within: the case's own name."""

    artifact: str
    within: str


@dataclass(frozen=True, kw_only=True)
class JudgedCell:
    """One artifact on one runtime.

    status: "refused" if there is no such artifact, "skipped" if the runtime cannot run it,
    "crashed" if its comparison was not finished. reason: of these three, and of a failure that no
    row shows. used: the largest share of its tolerance that an error took. seconds: that it took.
    """

    artifact: str
    runtime: str
    status: Status
    reason: str = ""
    comparisons: int = 0
    used: float = 0.0
    seconds: float = 0.0

    @property
    def word(self) -> str:
        """What a table says of it."""
        return percent(self.used) if self.status == "passed" else self.status

    def failures(self, rows: Iterable[Row]) -> list[Row]:
        """Those of the rows that failed it: its own, and those of its artifact on any runtime."""
        own = (x for x in rows if isinstance(x, SweptRow) and x.artifact == self.artifact)
        names = (self.runtime, *SHARED)
        return [row for row in own if row.status == "failed" and row.runtime in names]


@dataclass(frozen=True, kw_only=True)
class Cells:
    """Every cell of a sweep, in the order of its matrix."""

    every: tuple[JudgedCell, ...]

    def of(self, *statuses: str) -> list[JudgedCell]:
        return [cell for cell in self.every if cell.status in statuses]

    @property
    def failed(self) -> bool:
        """Whether one of them failed, or was not finished."""
        return bool(self.of("failed", "crashed"))

    @property
    def runtimes(self) -> list[str]:
        return list(dict.fromkeys(cell.runtime for cell in self.every))

    def table(self) -> dict[str, dict[str, JudgedCell]]:
        """The cells of each artifact, by their runtimes."""
        rows: dict[str, dict[str, JudgedCell]] = {}
        for cell in self.every:
            rows.setdefault(cell.artifact, {})[cell.runtime] = cell
        return rows

    def reasons(self, *statuses: str) -> dict[tuple[str, str], list[JudgedCell]]:
        """The cells of each status and reason, in the order of the first."""
        groups: dict[tuple[str, str], list[JudgedCell]] = {}
        for cell in self.of(*statuses):
            groups.setdefault((cell.status, cell.reason), []).append(cell)
        return groups

    def counts(self) -> str:
        """How many there are of each, in a sentence without its full stop."""
        compared = self.of(*COMPARED)
        artifacts = len({cell.artifact for cell in compared})
        failed = len(self.of("failed"))
        words = [f"{len(compared)} cells of {artifacts} artifacts", f"{failed} failed"]
        for status in ("crashed", "skipped", "refused"):
            count = len(self.of(status))
            words += [f"{count} {status}"] if count else []
        return ", ".join(words)

    def lines(self) -> Iterator[str]:
        """What is not passed, by its reason."""
        for cell in self.of("failed"):
            yield f"failed: {cell.artifact} on {cell.runtime}."
        for (status, reason), cells in self.reasons("crashed", "skipped", "refused").items():
            names = list(dict.fromkeys(cell.artifact for cell in cells))
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            where = "; ".join(names[:SHOWN]) + more
            if status != "refused":
                where += f" on {', '.join(dict.fromkeys(cell.runtime for cell in cells))}"
            yield f"{status}: {where}: {reason.rstrip('.')}."

    def short_lines(self) -> Iterator[str]:
        """The lines, of what was refused or skipped their number alone."""
        for line in self.lines():
            if line.startswith(("failed", "crashed")):
                yield line
        for status in ("skipped", "refused"):
            reasons = self.reasons(status)
            if reasons:
                (_, first), cells = next(iter(reasons.items()))
                others = f", and {len(reasons) - 1} other reasons" if len(reasons) > 1 else ""
                yield (
                    f"{status}: {len(self.of(status))} cells, {len(cells)} of them: "
                    f"{first.rstrip('.')}{others}."
                )

    def to_json(self) -> list[dict[str, Any]]:
        return [dict(vars(cell)) for cell in self.every]

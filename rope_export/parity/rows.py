"""One comparison, and all of them together."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from rope_export.parity.reading.verdict import Reading

CALLS_FAILED = "calls that failed"
"""The metric of a case in which a runtime gave no outputs."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One output of one case on one runtime, by one metric.

    error: what was measured. eager_error: the same of eager PyTorch. budget: what `error` may be.
    """

    case: str
    seed: int
    runtime: str
    output: str
    metric: str
    error: float
    eager_error: float
    budget: float
    status: Literal["passed", "failed"]

    @property
    def used(self) -> float:
        """Share of the budget that is used; infinite for any error where none is allowed."""
        if not math.isfinite(self.error):
            return math.inf
        if self.error == 0:
            return 0.0
        return self.error / self.budget if self.budget else math.inf

    def to_json(self) -> dict[str, Any]:
        """With null for figures that are not finite, which JSON cannot say."""
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in vars(self).items()
        }


def judged(
    *,
    case: str,
    seed: int,
    runtime: str,
    output: str,
    errors: Mapping[str, float],
    eager_errors: Mapping[str, float],
    ceilings: Mapping[str, float],
    floors: Mapping[str, float],
) -> list[Row]:
    """A row for each metric.

    Eager passes within its ceiling. A runtime passes within twice the larger of eager's error and
    the floor, and only if eager passes: what both get wrong is wrong.
    """
    rows = []
    for metric, error in errors.items():
        eager_error, limit = eager_errors[metric], ceilings[metric]
        eager_sound = eager_error <= limit  # False for NaN
        budget = limit if runtime == "eager" else 2 * max(eager_error, floors[metric])
        passed = eager_sound and error <= budget
        rows.append(
            Row(
                case=case,
                seed=seed,
                runtime=runtime,
                output=output,
                metric=metric,
                error=error,
                eager_error=eager_error,
                budget=budget,
                status="passed" if passed else "failed",
            )
        )
    return rows


def counted(*, case: str, seed: int, runtime: str, output: str, metric: str, error: float) -> Row:
    """A row whose error must be 0: differing bits, a wrong shape, a call that did not run."""
    return Row(
        case=case,
        seed=seed,
        runtime=runtime,
        output=output,
        metric=metric,
        error=error,
        eager_error=0.0,
        budget=0.0,
        status="passed" if error == 0 else "failed",
    )


@dataclass(kw_only=True)
class Report:
    """What `verify` found.

    weights: "proven" if the file holds the weights of the source, "unproven" if the source is
        gone. skipped: runtimes that were asked for and could not run, with the reason. problems:
        one line for everything that went wrong beyond a figure. loss: where weights are stored in
        few bits, how far the layer's output is from that of the source's own, by each metric; it
        is told, not judged. numbers: of an engine, whether what its plan computes was compared on a
        GPU: "unverified", or "passed on" or "failed on" which. left_out: one line for what was not
        compared. not_visible: each fault that no case can show, by the "feature" that it concerns,
        with the "reason". overflow: whether float16 ended before the layer did, which a problem
        tells. notes: warnings that are not about the artifact, such as evidence that could not be
        kept. reading: whether transformers reads the source as we do.
    """

    weights: Literal["proven", "unproven"]
    reading: Reading = field(default_factory=lambda: Reading(status="unproven"))
    rows: list[Row] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    loss: dict[str, float] | None = None
    numbers: str | None = None
    notes: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    not_visible: list[dict[str, str]] = field(default_factory=list)
    overflow: bool = False

    @property
    def status(self) -> Literal["passed", "failed", "nothing compared"]:
        if any(row.status == "failed" for row in self.rows):
            return "failed"
        if self.reading.status == "failed":
            return "failed"
        if self.numbers is not None and self.numbers.startswith("failed"):
            return "failed"
        ran = {row.runtime for row in self.rows} - {"eager", "file"}
        return "passed" if ran else "nothing compared"

    @property
    def passed(self) -> bool:
        return self.status == "passed"

    def keep(self, note: str | None) -> None:
        """Add a warning, if there is one and it is new."""
        if note is not None and note not in self.notes:
            self.notes.append(note)

    def to_json(self) -> dict[str, Any]:
        return {
            "status": self.status,
            "weights": self.weights,
            "reading": self.reading.to_json(),
            "rows": [row.to_json() for row in self.rows],
            "skipped": self.skipped,
            "problems": self.problems,
            "loss": self.loss,
            "numbers": self.numbers,
            "left_out": self.left_out,
            "notes": self.notes,
            "not_visible": self.not_visible,
        }

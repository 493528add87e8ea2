"""One comparison as a row, and the rule by which it passes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rope_export.parity.bounds import Bounds, tolerance

TEXT = "text"
"""The output of rows that are about greedy text."""

CALLS_FAILED = "calls that failed"
"""The metric of a case in which a runtime gave no outputs."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One output of one case on one runtime, by one metric.

    error: what was measured. eager_error: the same of eager PyTorch. tolerance: what `error` may
        be.
    """

    case: str
    seed: int
    runtime: str
    output: str
    metric: str
    error: float
    eager_error: float
    tolerance: float
    status: Literal["passed", "failed"]

    @property
    def used(self) -> float:
        """Share of the tolerance that is used; infinite for any error where none is allowed."""
        if not math.isfinite(self.error):
            return math.inf
        if self.error == 0:
            return 0.0
        return self.error / self.tolerance if self.tolerance else math.inf

    def to_json(self) -> dict[str, Any]:
        """The row with null for figures that are not finite, which JSON does not have."""
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in vars(self).items()
        }


def within(error: float, allowed: float) -> bool:
    """Whether an error is what it may be. One that is not finite never is, also where the tolerance
    is not either: where nothing but zeros is right, or eager's answer is not a number."""
    return math.isfinite(error) and error <= allowed


def judged(
    *,
    case: str,
    seed: int,
    runtime: str,
    output: str,
    errors: Mapping[str, float],
    eager_errors: Mapping[str, float],
    bounds: Bounds,
) -> list[Row]:
    """A row for each metric.

    Eager passes within its ceiling. A runtime passes within twice the larger of eager's error and
    the floor, and only if eager passes: what both get wrong is wrong.
    """
    rows = []
    for metric, error in errors.items():
        eager_error, ceiling = eager_errors[metric], bounds.ceilings[metric]
        eager_sound = within(eager_error, ceiling)
        allowed = tolerance(eager_error, bounds.floors[metric])
        if runtime == "eager":
            allowed = ceiling
        rows.append(
            Row(
                case=case,
                seed=seed,
                runtime=runtime,
                output=output,
                metric=metric,
                error=error,
                eager_error=eager_error,
                tolerance=allowed,
                status="passed" if eager_sound and within(error, allowed) else "failed",
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
        tolerance=0.0,
        status="passed" if error == 0 else "failed",
    )

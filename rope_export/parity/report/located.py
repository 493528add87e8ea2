"""The first tensor that a runtime gets wrong on a case that failed."""

import math
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Tap:
    """One tensor on the way, compared.

    tensor: its name, of the module that makes it. value: of the ONNX value; none in eager. metric,
    error, tolerance: of the metric that uses most of its tolerance.
    """

    tensor: str
    value: str | None
    metric: str
    error: float
    tolerance: float
    status: Literal["passed", "failed"]

    def to_json(self) -> dict[str, Any]:
        return {name: _number(value) for name, value in vars(self).items()}


@dataclass(frozen=True, kw_only=True)
class Located:
    """The first tensor that is outside of its tolerance, in the order in which they are computed.

    case, runtime: that were run again with every tensor on the way as an output. tensor, value,
    metric, error, tolerance: as of a `Tap`. where: the place of the largest error, as the names of
    the tensor's axes, each with an index. diagnosis: what explains the tensor's values, or that
    nothing that was tried does, in one sentence. taps: every tensor that was compared, in order.
    """

    case: str
    runtime: str
    tensor: str
    value: str | None
    where: tuple[tuple[str, int], ...]
    metric: str
    error: float
    tolerance: float
    diagnosis: str
    taps: tuple[Tap, ...]

    @property
    def line(self) -> str:
        """All of it but the table, in one sentence."""
        value = "" if self.value is None else f" (ONNX value {self.value!r})"
        place = ", ".join(f"{name} {at}" for name, at in self.where)
        at = f", worst at {place}" if place else ""
        return (
            f"first wrong on {self.runtime}: {self.tensor}{value}: {self.metric} "
            f"{self.error:.1e}, tolerance {self.tolerance:.1e}{at}, in {self.case}. "
            f"{self.diagnosis}"
        )

    def to_json(self) -> dict[str, Any]:
        facts = {name: _number(value) for name, value in vars(self).items()}
        return {**facts, "where": dict(self.where), "taps": [tap.to_json() for tap in self.taps]}


def _number(value: Any) -> Any:
    """Null for a figure that is not finite, which JSON does not have."""
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""What the second reading came to."""

import math
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

Status = Literal["proven", "unproven", "failed"]


def installed() -> str | None:
    """transformers' version as "transformers 5.24.0", if it is there."""
    try:
        return f"transformers {version('transformers')}"
    except PackageNotFoundError:
        return None


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A call on which the two readings differ, or "weights" for a tensor that does not fit.

    error: relative to the largest output; infinite where there is no figure. keys: of the config,
    which transformers' code reads for this attention and ours does not.
    """

    case: str
    output: str
    error: float
    keys: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        error = self.error if math.isfinite(self.error) else None
        return {
            "case": self.case,
            "output": self.output,
            "error": error,
            "keys": list(self.keys),
        }


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Whether transformers reads the source as we do.

    status: "proven" if its module agrees on every call; "failed" if it differs; "unproven" if it
    could not be asked. against: its name and version. reason: why it is unproven, or what a proof
    is limited to.
    """

    status: Status
    against: str | None = None
    reason: str | None = None
    differences: tuple[Difference, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "status": self.status,
            "against": self.against,
            "reason": self.reason,
            "differences": [x.to_json() for x in self.differences],
        }

    def lines(self) -> list[str]:
        """The verdict and each difference, a line each for a person to read."""
        against = f" against {self.against}" if self.against else ""
        why = f": {self.reason}" if self.reason else ""
        lines = [f"reading {self.status}{against}{why}".rstrip(".") + "."]
        for x in self.differences:
            keys = f"; keys that only transformers reads: {', '.join(x.keys)}" if x.keys else ""
            error = f"{x.error:.1e}" if math.isfinite(x.error) else "not comparable"
            lines.append(f"reading differs on {x.case}, {x.output}: {error}{keys}")
        return lines

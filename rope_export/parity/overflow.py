"""Where float16 ends before the computation does: PyTorch's own answer is then not a number."""

import numpy as np

from rope_export.parity.comparison import Arrays, Expected
from rope_export.parity.metrics import METRICS

LARGEST = float(np.finfo(np.float16).max)
"""65,504."""


class Overflows:
    """What passed float16's largest number in eager, over all cases; what the file made of them.

    main_output: the one that is looked at. dtype: of the subject.
    """

    def __init__(self, main_output: str, dtype: str) -> None:
        self.main_output, self.dtype = main_output, dtype
        self.largest: dict[str, float] = {}
        self.errors: dict[str, float] = {}
        self.cases = 0

    def seen(self, expected: Expected, eager: Arrays) -> bool:
        """Whether eager's answer, float16, is not finite because of a stage on the way to it."""
        answer = expected.judged(self.main_output, eager[self.main_output])
        if self.dtype != "float16" or np.all(np.isfinite(answer)):
            return False
        for name, value in expected.stages():
            size = float(np.nanmax(np.abs(value), initial=0.0))
            if size > LARGEST:
                self.largest[name] = max(size, self.largest.get(name, 0.0))
                self.cases += 1
                return True
        return False

    def add(self, runtime: str, errors: dict[str, float]) -> None:
        """The error of one runtime's main output in a case that was seen."""
        error = errors[METRICS[0]]
        worst = self.errors.get(runtime, 0.0)
        self.errors[runtime] = max(worst, error) if np.isfinite(error) else np.inf

    def problem(self) -> str | None:
        """One line for all cases that overflowed, or nothing."""
        if not self.cases:
            return None
        what = " and ".join(f"{name} (largest {x:,.0f})" for name, x in self.largest.items())
        figures = ", ".join(
            f"{name} {error:.1e}" if np.isfinite(error) else f"{name} not finite either"
            for name, error in self.errors.items()
        )
        return (
            f"float16 overflows: in eager, {what} pass {LARGEST:,.0f} in {self.cases} cases, so "
            f"PyTorch's answer there is not a number. Use `dtype`=bfloat16 or float32. The file's "
            f"own {METRICS[0]} against float64: {figures or 'nothing ran'}."
        )

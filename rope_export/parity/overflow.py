"""Where float16 ends before the layer does: PyTorch's own answer is then not a number."""

from collections.abc import Iterator

import numpy as np

from rope_export.parity.layer.reference import Trace
from rope_export.parity.metrics import METRICS
from rope_export.spec import AttentionSpec

LARGEST = float(np.finfo(np.float16).max)
"""65,504."""


class Overflows:
    """What passed float16's largest number in eager, over all cases; what the file made of them."""

    def __init__(self, spec: AttentionSpec) -> None:
        self.spec = spec
        self.largest: dict[str, float] = {}
        self.errors: dict[str, float] = {}
        self.cases = 0

    def seen(self, trace: Trace, eager: np.ndarray) -> bool:
        """Whether eager's answer, float16, is not finite because of what `trace` shows."""
        if self.spec.dtype != "float16" or np.all(np.isfinite(eager[trace.attended])):
            return False
        for name, value in on_the_way(self.spec, trace):
            size = float(np.nanmax(np.abs(value), initial=0.0))
            if size > LARGEST:
                self.largest[name] = max(size, self.largest.get(name, 0.0))
                self.cases += 1
                return True
        return False

    def add(self, runtime: str, errors: dict[str, float]) -> None:
        """The error of one runtime's attention output in a case that was seen."""
        error = errors[METRICS[0]]
        worst = self.errors.get(runtime, 0.0)
        self.errors[runtime] = max(worst, error) if np.isfinite(error) else np.inf

    def problem(self) -> str | None:
        """One line for all of them, or nothing."""
        if not self.cases:
            return None
        what = " and ".join(f"{name} (largest {x:,.0f})" for name, x in self.largest.items())
        figures = ", ".join(
            f"{name} {error:.1e}" if np.isfinite(error) else f"{name} not finite either"
            for name, error in self.errors.items()
        )
        return (
            f"float16 overflows: in eager, {what} pass {LARGEST:,.0f} in {self.cases} cases, so "
            f"PyTorch's answer there is not a number. Use --dtype bfloat16 or float32. The file's "
            f"own {METRICS[0]} against float64: {figures or 'nothing ran'}."
        )


def on_the_way(spec: AttentionSpec, trace: Trace) -> Iterator[tuple[str, np.ndarray]]:
    """What eager computes in the layer's dtype, in its order, by name."""
    for name, value in trace.projected.items():
        yield f"projections {name}", value
    yield "rotated queries", trace.turned_q
    yield "rotated keys", trace.turned_k
    yield "scaled queries", trace.ready_q
    # Eager multiplies with the scale after the product; slots that are hidden have no weight.
    yield "scores", trace.raw_scores[trace.weights > 0] / spec.softmax_scale
    yield "heads", trace.mixed
    yield "gated heads", trace.heads
    yield "outputs", trace.output

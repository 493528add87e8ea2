"""What the reference layer computes for one call, as the judge takes it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from rope_export.parity.bounds import Bounds
from rope_export.parity.comparison import Expected
from rope_export.parity.layer.chain import bounds_of
from rope_export.parity.layer.deviations import ceiling
from rope_export.parity.layer.reference import ReferenceLayer
from rope_export.parity.layer.trace import Trace


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerExpected(Expected):
    """What the reference layer computes.

    trace: every quantity on the way. layer: the reference; rough: with the roundings of a
    runtime's kernels. total: valid slots after the call, in the longest row.
    """

    trace: Trace
    layer: ReferenceLayer
    rough: ReferenceLayer
    total: int

    def ceilings(self) -> Mapping[str, np.ndarray]:
        return ceiling(self.layer, self.trace)

    def bounds(self) -> Mapping[str, Bounds]:
        own = self.ceilings()
        rough = own if self.rough is self.layer else ceiling(self.rough, self.trace)
        bounds = {}
        for tensor in self.interface.outputs:
            name = tensor.name
            eager = self._moved(name, own[name])
            runtime = eager if rough is own else self._moved(name, rough[name])
            expected = self.judged(name, self.outputs[name])
            bounds[name] = bounds_of(self.layer.spec, self.total, (eager, runtime), expected)
        return bounds

    def _moved(self, output: str, bound: np.ndarray) -> np.ndarray:
        """A bound on each element of an output, in the part that is judged."""
        return self.difference(output, self.outputs[output] + bound)[0]

    def stages(self) -> Iterator[tuple[str, np.ndarray]]:
        trace = self.trace
        for name, value in trace.projected.items():
            yield f"projections {name}", value
        yield "rotated queries", trace.rotated_q
        yield "rotated keys", trace.rotated_k
        yield "scaled queries", trace.ready_q
        # Eager multiplies with the scale after the product; slots that are hidden have no weight.
        yield "scores", trace.raw_scores[trace.weights > 0] / self.layer.spec.softmax_scale
        yield "heads", trace.mixed
        yield "gated heads", trace.heads
        yield "outputs", trace.output

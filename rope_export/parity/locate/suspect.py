"""The first wrong tensor of a layer, and what could have made it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from rope_export.parity.layer.reference import ReferenceLayer
from rope_export.parity.layer.trace import Trace
from rope_export.parity.locate.stage import Seen, Stage, explains
from rope_export.parity.locate.stages import cache_stage, values_of

Inputs = Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Maker:
    """The node that makes an ONNX value. weights: those of its inputs that are initializers."""

    operator: str
    inputs: tuple[str, ...]
    weights: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Suspect:
    """A tensor that is wrong while everything before it is right.

    layer: the reference, of whose call with `inputs` `trace` is. first: the tensor. seen: every
    tensor that was compared, by its key. maker: what makes it in the ONNX model; none in eager.
    limits_of_file: whole numbers in the file that could be limits on slots.
    """

    layer: ReferenceLayer
    trace: Trace
    inputs: Inputs
    first: Seen
    seen: Mapping[str, Seen]
    maker: Maker | None = None
    limits_of_file: tuple[int, ...] = ()

    @property
    def stage(self) -> Stage:
        return self.first.stage

    @property
    def value(self) -> np.ndarray:
        return self.first.value

    def of(self, layer: ReferenceLayer, inputs: Inputs | None = None) -> np.ndarray | None:
        """What another layer, or this one of other inputs, has in the place of the tensor; none if
        it has nothing of that size."""
        trace = layer(self.inputs if inputs is None else inputs)
        if self.stage.key == "cache":
            value = trace.outputs.get(self.stage.name)
            if value is not None and value.shape == self.value.shape:
                # What lies in slots that it would not take for valid is anybody's.
                used = trace.starts + trace.x.shape[1]
                valid = cache_stage("", value, used).judged
                assert valid is not None
                value = np.where(valid, value, self.value)
        else:
            value = values_of(layer, trace).get(self.stage.key)
        return value if value is not None and value.shape == self.stage.expected.shape else None

    def explained(self, other: np.ndarray | None) -> bool:
        """Whether the tensor is `other` but for rounding."""
        if other is None:
            return False
        return explains(self.stage.errors(self.value, other), self.limits)

    @property
    def limits(self) -> dict[str, float]:
        """What the error may be, by metric; where eager is wrong too, not by its measure."""
        bounds = self.stage.bounds(self.layer.spec.dtype)
        limits = {}
        for row in self.first.rows:
            ceiling = bounds.ceilings.get(row.metric, row.tolerance)
            sound = row.eager_error <= ceiling
            limits[row.metric] = row.tolerance if sound else ceiling
        return limits


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """Something that may be wrong. text: what, as the beginning of a sentence. value: what the
    tensor is then; none if it says nothing about it. rank: of several in one file, the lower the
    more it tells."""

    text: str
    value: Callable[[], np.ndarray | None]
    rank: int = 0


Signature = Callable[[Suspect], Iterator[Alternative]]

"""Which part of an output is judged by its error, and which bit for bit."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from rope_export.interface import Interface
from rope_export.parity.bounds import Bounds

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True, eq=False)
class Expected(ABC):
    """What the float64 reference computes for one call.

    outputs: by name, as the interface has them. starts (batch,): the slot of each row's first new
    token. sequence: new tokens of each row. attended (batch, sequence): which of them attend to
    anything; all of them without. Outputs of the others are not judged.
    """

    interface: Interface
    outputs: Mapping[str, np.ndarray]
    starts: np.ndarray
    sequence: int
    attended: np.ndarray | None = None

    @abstractmethod
    def bounds(self) -> Mapping[str, Bounds]:
        """What the errors of each output may be in this call."""

    def ceilings(self) -> Mapping[str, np.ndarray]:
        """How far rounding alone may take each number of eager's outputs, where that is known."""
        return {}

    def stages(self) -> Iterable[tuple[str, np.ndarray]]:
        """What eager computes on the way in the artifact's dtype, by name, in its order."""
        return ()

    def judged(self, output: str, value: np.ndarray) -> np.ndarray:
        """The part of an output that is judged by its error: of a cache the slots that the call
        wrote, of what has a row for each token those that attend to something."""
        axis = self._slot_axis(output)
        if axis is not None:
            rows = zip(value, self.starts, strict=True)
            return np.stack([_slots(x, axis, at, at + self.sequence) for x, at in rows])
        by_token = self.interface.output(output).shape[:2] == ("batch", "sequence")
        return value[self.attended] if by_token and self.attended is not None else value

    def by_token(self, output: str, value: np.ndarray) -> np.ndarray | None:
        """An output as (batch, sequence, ...), of a cache the slots that the call wrote; nothing
        for one that has no row for each token."""
        axis = self._slot_axis(output)
        if axis is not None:
            return np.moveaxis(self.judged(output, value), axis, 1)
        shape = self.interface.output(output).shape
        return value if shape[:2] == ("batch", "sequence") else None

    def judged_tokens(self, output: str) -> np.ndarray:
        """Which tokens of an output are judged, (batch, sequence)."""
        if self.attended is None or self._slot_axis(output) is not None:
            return np.ones((len(self.starts), self.sequence), bool)
        return self.attended

    def difference(self, output: str, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How far an output is from the reference, and the reference, in the part that is judged
        by its error."""
        expected = self.judged(output, self.outputs[output])
        return self.judged(output, value) - expected, expected

    def changed(self, output: str, value: np.ndarray, inputs: Arrays) -> float | None:
        """How many numbers of a cache have other bits than before the call, in the slots that were
        valid then; nothing for what is no cache, or where no slot was valid."""
        axis = self._slot_axis(output)
        if axis is None or not np.any(self.starts):
            return None
        (before,) = (x.input for x in self.interface.caches if x.output == output)
        return _differing(value, inputs[before], self.starts, axis)

    def _slot_axis(self, output: str) -> int | None:
        """The axis of a cache on which its slots lie; nothing for another output."""
        return next((x.axis for x in self.interface.caches if x.output == output), None)


def _slots(row: np.ndarray, axis: int, start: int, stop: int) -> np.ndarray:
    """Slots of one row of a cache; axis: of the whole cache, whose first is the batch."""
    return row[(*(slice(None),) * (axis - 1), slice(start, stop))]


def _differing(after: np.ndarray, before: np.ndarray, starts: np.ndarray, axis: int) -> float:
    bits = np.dtype(f"u{before.dtype.itemsize}")
    differing = 0
    for now, then, at in zip(after, before, starts, strict=True):
        old, new = (np.ascontiguousarray(_slots(x, axis, 0, at)) for x in (then, now))
        differing += int(np.sum(new.view(bits) != old.view(bits)))
    return float(differing)

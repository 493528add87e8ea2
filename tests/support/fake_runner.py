"""A Runner that computes with numpy what can be told by looking, on an interface of any names.

A cache holds, in every element of a slot, the token that was written there plus 1 and plus 100 for
each cache before it. The main output of a token is (the sum over the slots that it sees in the
first cache, its position, 0, 0, ...): it sees those up to its own that the mask allows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rope_export.arrays import numpy_dtype
from rope_export.interface import Interface
from rope_export.runtimes import Runner
from rope_export.runtimes.base import written

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class FakeManifest:
    """What sessions and streams read of a manifest."""

    interface: Interface
    stale_slots: str = "any"
    first_position: int | None = None
    positions: int | None = None
    vocabulary: int | None = None
    padding: bool = True


class FakeRunner(Runner):
    """calls: the inputs of each, copied. prepared: how often repeated calls were prepared. fails:
    raised by the next call, when it has written its caches."""

    def __init__(
        self, interface: Interface, *, capacity: int | None = None, whole_capacity: bool = False
    ) -> None:
        self.interface = interface
        self.capacity, self.whole_capacity = capacity, whole_capacity
        self.calls: list[Arrays] = []
        self.prepared = 0
        self.fails: BaseException | None = None
        self.closed = False

    def prepare(self, kept: Mapping[str, Any], into: Mapping[str, Any]) -> Any:
        self.prepared += 1
        return super().prepare(kept, into)

    def run(
        self, inputs: Mapping[str, Any], axes: Mapping[str, int], into: Mapping[str, Any]
    ) -> Arrays:
        interface = self.interface
        self.calls.append({name: np.array(value) for name, value in inputs.items()})
        tokens = inputs[interface.main_input]
        tokens = tokens if tokens.ndim == 2 else tokens[..., 0]
        first = self._first_slots(inputs)
        outputs = {
            pair.output: self._cached(pair, inputs[pair.input], tokens + 1 + 100 * at, first)
            for at, pair in enumerate(interface.caches)
        }
        main = interface.output(interface.main_output)
        result = np.zeros(main.sized(axes), numpy_dtype(main.dtype))
        result[..., 0] = self._seen(inputs, outputs, first)
        if interface.positions is not None:
            result[..., 1] = inputs[interface.positions]
        outputs[interface.main_output] = result
        if self.fails is not None:
            written({n: x for n, x in outputs.items() if n in into}, into)
            error, self.fails = self.fails, None
            raise error
        return written(outputs, into)

    def close(self) -> None:
        self.closed = True

    def _first_slots(self, inputs: Mapping[str, Any]) -> np.ndarray:
        """Where each row's new tokens are written."""
        if self.interface.lengths is not None:
            return np.asarray(inputs[self.interface.lengths])
        past = 0
        for pair in self.interface.caches:
            past = inputs[pair.input].shape[pair.axis]
        return np.full(inputs[self.interface.main_input].shape[0], past)

    def _cached(self, pair: Any, cache: np.ndarray, values: np.ndarray, first: Any) -> np.ndarray:
        slots = np.moveaxis(cache, pair.axis, 1)
        new = values.reshape(*values.shape, *(1,) * (slots.ndim - 2)).astype(cache.dtype)
        new = np.broadcast_to(new, (*values.shape, *slots.shape[2:]))
        if self.interface.lengths is None:
            slots = np.concatenate((slots, new), axis=1)
        else:
            slots = slots.copy()
            for row, at in enumerate(first):
                slots[row, at : at + values.shape[1]] = new[row]
        return np.moveaxis(slots, 1, pair.axis)

    def _seen(self, inputs: Mapping[str, Any], outputs: Arrays, first: np.ndarray) -> np.ndarray:
        pair = self.interface.caches[0]
        slots = np.moveaxis(outputs[pair.output], pair.axis, 1)
        held = slots.reshape(*slots.shape[:2], -1)[..., 0]
        if self.interface.mask is not None:
            held = held * inputs[self.interface.mask]
        sums = np.cumsum(held, axis=1)
        last = first[:, None] + np.arange(inputs[self.interface.main_input].shape[1])
        return np.take_along_axis(sums, last, axis=1)

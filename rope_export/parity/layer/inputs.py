"""The inputs of an attention layer for one case."""

from collections.abc import Mapping
from zlib import crc32

import numpy as np

from rope_export.arrays import fill_cache, numpy_dtype
from rope_export.interface import Interface
from rope_export.parity.cases import FAR, Case
from rope_export.parity.layer.reference import ReferenceLayer

STALE = 100.0
"""Size of what lies in the slots that are not valid, far beyond the others: nothing may read it."""

Arrays = dict[str, np.ndarray]


def layer_inputs(case: Case, layer: ReferenceLayer, interface: Interface, seed: int) -> Arrays:
    """Normal hidden states of size `scale`, and a past that the layer itself made of such hidden
    states, or one that is drawn."""
    return _Inputs(case, layer, interface, seed).arrays()


class _Inputs:
    """The draws of one case, all from one stream in one order."""

    def __init__(self, case: Case, layer: ReferenceLayer, interface: Interface, seed: int) -> None:
        self.case, self.layer, self.interface = case, layer, interface
        bits = np.random.PCG64([seed, crc32(case.name.encode())])
        self.stream = np.random.Generator(bits)

    def arrays(self) -> Arrays:
        """Every input by name."""
        case, interface = self.case, self.interface
        dtype = numpy_dtype(interface.input(interface.main_input).dtype)
        tokens = case.sequence if case.drawn else case.total
        shape = (case.batch, tokens, self.layer.spec.hidden_size)
        hidden = self.stream.standard_normal(shape, dtype=np.float32) * np.float32(case.scale)
        hidden = hidden.astype(dtype)
        positions = self._positions()
        inputs = {interface.main_input: np.ascontiguousarray(hidden[:, tokens - case.sequence :])}
        if interface.positions is not None:
            inputs[interface.positions] = self._new(positions)
        if interface.caches:
            past = self._drawn if case.drawn else self._computed
            for pair, value in zip(interface.caches, past(hidden, positions).values(), strict=True):
                cache = value.astype(dtype)
                inputs[pair.input] = cache if interface.cache == "growing" else self._fixed(cache)
        if interface.lengths is not None:
            inputs[interface.lengths] = case.starts
        if interface.mask is not None:
            mask = self._mask()
            free = ((0, 0), (0, case.spare))
            inputs[interface.mask] = (
                np.pad(mask, free, constant_values=1) if interface.cache == "fixed" else mask
            )
        return inputs

    def _computed(self, hidden: np.ndarray, positions: np.ndarray) -> Mapping[str, np.ndarray]:
        """What the layer caches of the tokens before the new ones."""
        past = self.case.past
        return self.layer.cache(hidden[:, :past], positions[..., :past])

    def _drawn(self, hidden: np.ndarray, positions: np.ndarray) -> Mapping[str, np.ndarray]:
        """A normal past, as large as what the layer caches of the new tokens; sqrt(past) / 2 times
        that in loud slots, so that each of them weighs as much as all the others."""
        case = self.case
        cache = {}
        for name, value in self.layer.cache(hidden, positions[..., case.past :]).items():
            shape = (*value.shape[:-2], case.past, value.shape[-1])
            size = np.float32(np.sqrt(np.mean(value**2)))
            cache[name] = size * self.stream.standard_normal(shape, dtype=np.float32)
            if case.loud and name == "value":
                cache[name][..., list(case.loud), :] *= np.float32(np.sqrt(case.past) / 2)
        return cache

    def _new(self, positions: np.ndarray) -> np.ndarray:
        """The positions of the new tokens, which follow each row's own past."""
        count = self.case.sequence
        rows = [positions[..., b, at : at + count] for b, at in enumerate(self.case.starts)]
        return np.ascontiguousarray(np.stack(rows, axis=-2))

    def _fixed(self, past: np.ndarray) -> np.ndarray:
        """A cache with room for the new tokens: the valid slots, and stale values after them."""
        capacity = self.case.total + self.case.spare
        shape = (*past.shape[:-2], capacity, past.shape[-1])
        stale = STALE * self.stream.standard_normal(shape, dtype=np.float32)
        cache = stale.astype(past.dtype)
        fill_cache(cache, past, past.ndim - 2, self.case.starts.tolist())
        return cache

    def _positions(self) -> np.ndarray:
        """(batch, total), or (axes, batch, total): then drawn anew on every axis but the first,
        near the first, or a fault that mixes axes up would not show."""
        case, rope = self.case, self.layer.spec.rope
        shape = (case.batch, case.total)
        if case.start is None:
            lowest = self.layer.spec.first_position
            first = self.stream.integers(-FAR if lowest is None else lowest, FAR, shape)
        else:
            first = np.broadcast_to(case.start + np.arange(case.total), shape).copy()
        axes = 1 if rope is None else rope.axes
        if axes == 1:
            return first
        others = first // 2 + self.stream.integers(0, 64, (axes - 1, *shape))
        return np.concatenate((first[None], others))

    def _mask(self) -> np.ndarray:
        """1 = attend. Left padding leaves whole rows of the first tokens with nothing to see."""
        batch, total, padding = self.case.batch, self.case.total, self.case.padding
        mask = np.ones((batch, total), np.int64)
        if padding == "left":
            for row in range(batch):
                mask[row, : (row + 1) * total // (batch + 1)] = 0
        elif padding == "right":
            mask[:, total - total // 3 :] = 0
        elif padding == "holes":
            mask = (self.stream.random(mask.shape) < 0.6).astype(np.int64)
        elif padding == "unequal":
            mask[0] = 0  # an empty row beside full ones
        return mask

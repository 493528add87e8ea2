"""The calls an artifact is judged on: corners of batch, sequence, past, position and padding."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal
from zlib import crc32

import numpy as np

from rope_export.arrays import numpy_dtype
from rope_export.artifacts.artifact import Manifest
from rope_export.interface import LENGTHS
from rope_export.parity.layer.reference import ReferenceLayer
from rope_export.spec import AttentionSpec

Padding = Literal["left", "right", "holes", "unequal"]

FAR = 2**20
"""One more than the last position that is tried; the first is as far below 0."""

SPARE = 3
"""Slots beyond those a call fills, in a fixed cache."""

STALE = 100.0
"""Size of what lies in the slots that are not in use, far beyond the entries: nobody may look."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One call. `start`: position of the first cached or new token; None draws every position
    anew, from -FAR up to FAR. padding: where attention_mask has zeros. lengths: entries in use of
    each row of a fixed cache, the longest being past; all past unless given. spare: slots of a
    fixed cache that are still free after the call. scale: size of the hidden states.

    drawn: the past is drawn, at the size of what the layer makes of the new tokens, and not
    computed: a long one costs memory alone. loud: slots of a drawn past whose values are so large
    that one of them, seen or not, changes the output."""

    batch: int
    sequence: int
    past: int = 0
    start: int | None = 0
    padding: Padding | None = None
    lengths: tuple[int, ...] | None = None
    spare: int = SPARE
    scale: float = 1.0
    drawn: bool = False
    loud: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        words = [f"{self.batch}x{self.sequence}", f"past {self.past}"]
        if self.lengths:
            words[1] = f"past {', '.join(map(str, self.lengths))}"
        if self.spare == 0:
            words.append("cache full")
        if self.start is None:
            words.append("positions drawn")
        elif self.start:
            words.append(f"positions from {self.start}")
        if self.padding:
            words.append(f"{self.padding} padding")
        if self.scale != 1:
            words.append(f"inputs x {self.scale:g}")
        if self.drawn:
            words.append("past drawn")
        if self.loud:
            words.append(f"loud slots {', '.join(map(str, self.loud))}")
        return ", ".join(words)

    @property
    def total(self) -> int:
        return self.past + self.sequence

    @property
    def starts(self) -> np.ndarray:
        """Slot of each row's first new token."""
        return np.array(self.lengths or (self.past,) * self.batch, np.int64)

    def inputs(self, layer: ReferenceLayer, manifest: Manifest, seed: int) -> dict[str, np.ndarray]:
        """Inputs by the contract: normal hidden states of size `scale`, and a past that the layer
        itself made of such hidden states, or one that is drawn."""
        stream = np.random.Generator(np.random.PCG64([seed, crc32(self.name.encode())]))
        dtype = numpy_dtype(manifest.dtype)
        made = self.sequence if self.drawn else self.total
        shape = (self.batch, made, layer.spec.hidden_size)
        hidden = stream.standard_normal(shape, dtype=np.float32) * np.float32(self.scale)
        hidden = hidden.astype(dtype)
        positions = self._positions(stream, layer)
        inputs = {"hidden_states": np.ascontiguousarray(hidden[:, made - self.sequence :])}
        if layer.spec.uses_positions:
            inputs["position_ids"] = self._new(positions)
        if manifest.cache != "none":
            past = self._drawn if self.drawn else self._computed
            cache = {n: x.astype(dtype) for n, x in past(stream, layer, hidden, positions).items()}
            if manifest.cache == "growing":
                inputs |= {f"past_{name}": value for name, value in cache.items()}
            else:
                inputs |= {f"{n}_cache": self._fixed(stream, x) for n, x in cache.items()}
                inputs[LENGTHS] = self.starts
        if manifest.padding:
            mask = self._mask(stream)
            free = ((0, 0), (0, self.spare))
            inputs["attention_mask"] = (
                np.pad(mask, free, constant_values=1) if manifest.cache == "fixed" else mask
            )
        return inputs

    def _computed(
        self,
        stream: np.random.Generator,
        layer: ReferenceLayer,
        hidden: np.ndarray,
        positions: np.ndarray,
    ) -> dict[str, np.ndarray]:
        """What the layer caches of the tokens before the new ones."""
        return layer.cache(hidden[:, : self.past], positions[..., : self.past])

    def _drawn(
        self,
        stream: np.random.Generator,
        layer: ReferenceLayer,
        hidden: np.ndarray,
        positions: np.ndarray,
    ) -> dict[str, np.ndarray]:
        """A normal past, as large as what the layer caches of the new tokens; sqrt(past) / 2 times
        that in loud slots, so that each of them weighs as much as all the others."""
        made = layer.cache(hidden, positions[..., self.past :])
        cache = {}
        for name, value in made.items():
            shape = (*value.shape[:-2], self.past, value.shape[-1])
            size = np.float32(np.sqrt(np.mean(value**2)))
            cache[name] = size * stream.standard_normal(shape, dtype=np.float32)
            if self.loud and name == "value":
                cache[name][..., list(self.loud), :] *= np.float32(np.sqrt(self.past) / 2)
        return cache

    def _new(self, positions: np.ndarray) -> np.ndarray:
        """The positions of the new tokens, which follow each row's own past."""
        count = self.sequence
        rows = [positions[..., b, at : at + count] for b, at in enumerate(self.starts)]
        return np.ascontiguousarray(np.stack(rows, axis=-2))

    def _fixed(self, stream: np.random.Generator, made: np.ndarray) -> np.ndarray:
        """A cache with room for the new tokens, the entries in use, and stale ones after them."""
        shape = (*made.shape[:-2], self.total + self.spare, made.shape[-1])
        cache = (STALE * stream.standard_normal(shape, dtype=np.float32)).astype(made.dtype)
        for row, values, at in zip(cache, made, self.starts, strict=True):
            row[..., :at, :] = values[..., :at, :]
        return cache

    def _positions(self, stream: np.random.Generator, layer: ReferenceLayer) -> np.ndarray:
        """(batch, total), or (axes, batch, total): then drawn anew on every axis but the first,
        near the first, or a fault that mixes axes up would not show."""
        shape = (self.batch, self.total)
        if self.start is None:
            lowest = layer.spec.first_position
            first = stream.integers(-FAR if lowest is None else lowest, FAR, shape)
        else:
            first = np.broadcast_to(self.start + np.arange(self.total), shape).copy()
        axes = 1 if layer.spec.rope is None else layer.spec.rope.axes
        if axes == 1:
            return first
        others = first // 2 + stream.integers(0, 64, (axes - 1, *shape))
        return np.concatenate((first[None], others))

    def _mask(self, stream: np.random.Generator) -> np.ndarray:
        """1 = attend. Left padding leaves whole rows of the first tokens with nothing to see."""
        mask = np.ones((self.batch, self.total), np.int64)
        if self.padding == "left":
            for row in range(self.batch):
                mask[row, : (row + 1) * self.total // (self.batch + 1)] = 0
        elif self.padding == "right":
            mask[:, self.total - self.total // 3 :] = 0
        elif self.padding == "holes":
            mask = (stream.random(mask.shape) < 0.6).astype(np.int64)
        elif self.padding == "unequal":
            mask[0] = 0  # an empty row beside full ones
        return mask


def cases(manifest: Manifest) -> Iterator[Case]:
    """Every case that fits the artifact's cache and padding; at least 24 for any of them."""
    spec = AttentionSpec.from_json(manifest.spec)
    prefill = [(1, 1), (1, 2), (1, 7), (2, 1), (1, 33), (2, 64), (4, 17), (1, 128), (1, 512)]
    prefill += [(3, 1), (3, 7), (3, 512)]
    for batch, sequence in prefill:
        yield Case(batch=batch, sequence=sequence)
    for batch, sequence, start in (
        (1, 1, FAR - 1),
        (1, 7, FAR - 7),
        (2, 3, 2_047),
        (1, 16, 4_095),
        (3, 1, 8_192),
        (2, 2, 32_768),
        (1, 64, 65_504),
        (2, 9, 100_000),
        (1, 7, 131_069),
        *(((1, 7, -1_000), (2, 9, -3), (1, 3, -FAR)) if spec.first_position is None else ()),
    ):
        yield Case(batch=batch, sequence=sequence, start=start)
    for batch, sequence in ((1, 4), (2, 2), (3, 13), (2, 31), (5, 1), (1, 100)):
        yield Case(batch=batch, sequence=sequence, start=None)
    if manifest.cache != "none":
        yield from _cached()
    if manifest.cache == "fixed":
        yield from _fixed()
    if manifest.padding:
        yield from _padded(manifest)


def _cached() -> Iterator[Case]:
    decode = [(1, 1), (3, 1), (1, 7), (2, 31), (4, 128), (1, 511), (1, 2_000), (3, 2_000)]
    for batch, past in decode:
        yield Case(batch=batch, sequence=1, past=past)
    chunks = [(1, 2, 1), (1, 7, 1), (3, 5, 8), (2, 33, 100), (1, 128, 384), (1, 3, 2_000)]
    for batch, sequence, past in chunks:
        yield Case(batch=batch, sequence=sequence, past=past)
    yield Case(batch=1, sequence=1, past=31, start=FAR - 32)
    yield Case(batch=2, sequence=4, past=60, start=65_500)
    yield Case(batch=3, sequence=2, past=9, start=None)
    yield Case(batch=1, sequence=1, past=64, start=None)


def _fixed() -> Iterator[Case]:
    """Rows of different length, some empty, and caches filled to the last entry."""
    for sequence, lengths in (
        (1, (3, 8)),
        (1, (0, 200, 57)),
        (5, (0, 0, 9)),
        (3, (63, 2)),
        (1, (2_000, 1, 700, 0)),
        (64, (5, 130)),
    ):
        past = max(lengths)
        yield Case(batch=len(lengths), sequence=sequence, past=past, lengths=lengths)
    yield Case(batch=2, sequence=4, past=60, lengths=(60, 7), start=65_500)
    yield Case(batch=3, sequence=2, past=9, lengths=(9, 0, 4), start=None)
    for batch, sequence, past in ((1, 1, 63), (2, 5, 11), (1, 16, 0), (3, 1, 2_000)):
        yield Case(batch=batch, sequence=sequence, past=past, spare=0)
    yield Case(batch=3, sequence=2, past=30, lengths=(30, 0, 17), spare=0)
    yield Case(batch=1, sequence=1, past=9, spare=4_000)
    yield Case(batch=2, sequence=7, spare=500)


def _padded(manifest: Manifest) -> Iterator[Case]:
    past = 9 if manifest.cache != "none" else 0
    for padding in ("left", "right", "holes", "unequal"):
        yield Case(batch=3, sequence=7, padding=padding)
        yield Case(batch=2, sequence=4, past=past, start=1_000, padding=padding)
    yield Case(batch=4, sequence=1, past=4 * past, padding="left")
    yield Case(batch=2, sequence=64, past=past, start=None, padding="holes")
    if manifest.cache == "fixed":
        yield Case(batch=3, sequence=4, past=20, lengths=(20, 3, 11), padding="holes")
        yield Case(batch=3, sequence=1, past=20, lengths=(5, 20, 11), padding="left")

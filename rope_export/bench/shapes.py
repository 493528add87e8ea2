"""The calls that are timed: their sizes, and what they are fed."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from zlib import crc32

import numpy as np

from rope_export.arrays import numpy_dtype
from rope_export.errors import InputError
from rope_export.interface import Interface, TensorType, attention_interface
from rope_export.spec import AttentionSpec

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True, order=True)
class Shape:
    """One call: `sequence` new tokens in each of `batch` rows, after `past` cached ones."""

    batch: int
    sequence: int
    past: int

    @property
    def total(self) -> int:
        return self.past + self.sequence

    @property
    def name(self) -> str:
        return f"{self.batch}x{self.sequence}, past {self.past}"


DEFAULT = tuple(
    Shape(batch=batch, sequence=sequence, past=past)
    for batch, sequence, past in (
        (1, 1, 128),
        (1, 1, 512),
        (1, 1, 2048),
        (4, 1, 1024),
        (8, 1, 2048),
        (1, 128, 0),
        (1, 512, 0),
    )
)
"""Decode by growing past, then by growing batch; then two prompts."""

DECODE_PASTS = "128,512,2048"


def sweep(batch: str | None, sequence: str | None, past: str | None) -> tuple[Shape, ...]:
    """Every combination of comma lists such as "1,4"; DEFAULT where none is given.

    Without, batch is 1, sequence is 1, and past is 0 for a given sequence, DECODE_PASTS otherwise.
    Raises: InputError naming the option, its value and the rule.
    """
    if batch is sequence is past is None:
        return DEFAULT
    pasts = past if past is not None else DECODE_PASTS if sequence is None else "0"
    lists = (
        _sizes("batch", "1" if batch is None else batch, 1),
        _sizes("sequence", "1" if sequence is None else sequence, 1),
        _sizes("past", pasts, 0),
    )
    return tuple(Shape(batch=b, sequence=s, past=p) for b, s, p in product(*lists))


def _sizes(option: str, text: str, minimum: int) -> list[int]:
    sizes = []
    for word in text.split(","):
        if not word.strip().isascii() or not word.strip().removeprefix("-").isdigit():
            raise InputError(f"`{option}`={text}: {word!r} is no whole number; write such as 1,4.")
        if int(word) < minimum:
            raise InputError(
                f"`{option}`={text}: {int(word)} is too small; it must be {minimum} up."
            )
        sizes.append(int(word))
    return list(dict.fromkeys(sizes))


def growing_interface(spec: AttentionSpec) -> Interface:
    """The tensors of a call of the layer with a growing cache if it can have one, and no mask."""
    return attention_interface(spec, cache="growing" if spec.causal else "none", padding=False)


def drawn(spec: AttentionSpec, shape: Shape, seed: int) -> Arrays:
    """Inputs of one call, by their names in `growing_interface`.

    Unit normal hidden states and cache entries, positions that go on from the past: for a layer
    of this spec the same at every call, whoever runs it.
    """
    interface = growing_interface(spec)
    axes = {"batch": shape.batch, "sequence": shape.sequence, "past": shape.past}
    inputs = {t.name: _values(t, axes, seed) for t in interface.inputs}
    if interface.positions is not None:
        size = interface.input(interface.positions).sized(axes)
        positions = shape.past + np.arange(shape.sequence, dtype=np.int64)
        inputs[interface.positions] = np.broadcast_to(positions, size).copy()
    return inputs


def _values(tensor: TensorType, axes: Mapping[str, int], seed: int) -> np.ndarray:
    size = tensor.sized(axes)
    stream = np.random.Generator(np.random.PCG64([seed, crc32(tensor.name.encode())]))
    return stream.standard_normal(size, dtype=np.float32).astype(numpy_dtype(tensor.dtype))

"""Quantized weights of an ONNX file that somebody else made, and what they stand for.

Three forms are known: MatMulNBits, which multiplies as well; GatherBlockQuantized, which looks rows
up; and DequantizeLinear of a constant, whose result any node takes. Sources: onnxruntime's
descriptions of its operators, and that of DequantizeLinear in ONNX.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rope_export.errors import UnavailableError
from rope_export.parity.onnx_file.constants import Constants
from rope_export.parity.onnx_file.file import attribute

ROUNDS_TO_INT8 = 4
"""The accuracy level at which onnxruntime's kernel rounds what it multiplies with to int8."""

Blocks = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Levels, their zeros, and their steps, as float32 of shapes that go with one another."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Quantized:
    """A weight. node: that dequantizes it. parts: the tensors that it is stored in, the levels
    first. shape: of the weight. dtype: of its numbers. int8_block: how many features share a scale
    where the node rounds what it multiplies the weight with to int8. blocks: reads it."""

    node: Any
    parts: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    int8_block: int | None
    blocks: Callable[[], Blocks]

    @property
    def is_separate(self) -> bool:
        """Whether the node gives the weight itself, which other nodes take."""
        return self.node.op_type == "DequantizeLinear"

    def values(self) -> np.ndarray:
        """(level - zero) * step, rounded once."""
        levels, zeros, steps = self.blocks()
        return self._whole((levels - zeros) * steps).astype(self.dtype)

    def steps(self) -> np.ndarray:
        """How far two neighbouring levels are apart, by number."""
        levels, _, steps = self.blocks()
        return self._whole(np.broadcast_to(np.abs(steps), levels.shape))

    def _whole(self, blocks: np.ndarray) -> np.ndarray:
        """Blocks beside one another, without what fills the last one up."""
        if blocks.shape == self.shape:
            return blocks
        rows = blocks.reshape(self.shape[0], -1)
        return np.ascontiguousarray(rows[:, : self.shape[1]])


def quantized_in(graph: Any, constants: Constants) -> Iterator[Quantized]:
    """Every quantized weight of a graph.

    Raises: UnavailableError for one that is quantized in a way that is not known.
    """
    for node in graph.node:
        if node.op_type == "MatMulNBits":
            yield _product(node, constants)
        elif node.op_type == "GatherBlockQuantized":
            yield _rows(node, constants)
        elif node.op_type == "DequantizeLinear" and constants.has(node.input[0]):
            yield _linear(node, constants)


def _product(node: Any, constants: Constants) -> Quantized:
    """MatMulNBits: (out, blocks, bytes of a block), with a scale for each block of a row."""
    rows, inputs, block = (int(attribute(node, x, 0)) for x in ("N", "K", "block_size"))
    bits, names = _bits(node), _names(node, 1, 2, 3)
    if len(node.input) > 4 and node.input[4]:
        raise UnavailableError(
            f"{node.name}: MatMulNBits with g_idx, whose features are in another order, is not read"
        )
    _check_constant(node, names, constants)
    count = -(-inputs // block)

    def blocks() -> Blocks:
        levels = _levels(constants.read(names[0]), bits).reshape(rows, count, block)
        steps = constants.read(names[1]).astype(np.float32).reshape(rows, count, 1)
        return levels, _zeros(names, constants, bits, (rows, count)), steps

    level = int(attribute(node, "accuracy_level", 0))
    int8_block = block if level == ROUNDS_TO_INT8 else None
    return _weight(node, names, constants, (rows, inputs), blocks, int8_block)


def _rows(node: Any, constants: Constants) -> Quantized:
    """GatherBlockQuantized: (rows, width), with a scale for each block of a row."""
    names = _names(node, 0, 2, 3)
    _check_constant(node, names, constants)
    axes = [attribute(node, "gather_axis", 0), attribute(node, "quantize_axis", 1)]
    packed = constants.read(node.input[0])
    if axes not in ([0, 1], [0, -1]) or packed.ndim != 2:
        raise UnavailableError(
            f"{node.name}: GatherBlockQuantized is read where it takes rows of a matrix whose "
            f"blocks lie in them, not with axes {axes} of {packed.ndim}"
        )
    block = int(attribute(node, "block_size", 128))
    bits = _bits(node) if packed.dtype == np.uint8 else 0
    width = packed.shape[1] * (8 // bits if bits else 1)
    count = -(-width // block)
    shape = (packed.shape[0], width)

    def blocks() -> Blocks:
        levels = constants.read(names[0])
        levels = _levels(levels, bits) if bits else levels.astype(np.float32)
        levels = np.pad(levels.reshape(shape), ((0, 0), (0, count * block - width)))
        steps = constants.read(names[1]).astype(np.float32).reshape(shape[0], count, 1)
        zeros = _zeros(names, constants, bits, (shape[0], count))
        return levels.reshape(shape[0], count, block), zeros, steps

    return _weight(node, names, constants, shape, blocks)


def _linear(node: Any, constants: Constants) -> Quantized:
    """DequantizeLinear: one scale, one for each index of an axis, or one for each block on it."""
    names = _names(node, 0, 1, 2)
    _check_constant(node, names, constants)
    shape = constants.shape(names[0])
    axis, block = int(attribute(node, "axis", 1)), int(attribute(node, "block_size", 0))

    def spread(name: str) -> np.ndarray:
        """A scale or zero of every number."""
        value = constants.read(name).astype(np.float32)
        if value.ndim == len(shape) and block:
            return value.repeat(block, axis=axis)[tuple(map(slice, shape))]
        if value.size == 1:
            return value.reshape(())
        return value.reshape([-1 if x == axis % len(shape) else 1 for x in range(len(shape))])

    def blocks() -> Blocks:
        levels = constants.read(names[0]).astype(np.float32)
        zeros = spread(names[2]) if names[2] else np.zeros((), np.float32)
        return levels, zeros, spread(names[1])

    return _weight(node, names, constants, shape, blocks)


def _bits(node: Any) -> int:
    bits = int(attribute(node, "bits", 4))
    if bits not in (4, 8):
        raise UnavailableError(f"{node.name}: {node.op_type} of {bits} bits is not read, 4 and 8")
    return bits


def _names(node: Any, *places: int) -> list[str]:
    return [node.input[x] if x < len(node.input) else "" for x in places]


def _check_constant(node: Any, names: Sequence[str], constants: Constants) -> None:
    """Raises: UnavailableError for a part of a weight that the file computes."""
    for name in names:
        if name and not constants.has(name):
            raise UnavailableError(f"{node.name}: {name} is computed, and not read from the file")


def _weight(
    node: Any,
    names: Sequence[str],
    constants: Constants,
    shape: tuple[int, ...],
    blocks: Callable[[], Blocks],
    int8_block: int | None = None,
) -> Quantized:
    """names: of the levels, the steps and the zeros."""
    return Quantized(
        node=node,
        parts=tuple(constants.origin(x) for x in names if x),
        shape=shape,
        dtype=constants.read(names[1]).dtype,
        int8_block=int8_block,
        blocks=blocks,
    )


def _levels(packed: np.ndarray, bits: int) -> np.ndarray:
    """Whole numbers without a sign as float32; of each byte with two of them the lower first."""
    if bits == 4:
        packed = np.stack((packed & 15, packed >> 4), axis=-1)
    return packed.astype(np.float32)


def _zeros(
    names: Sequence[str], constants: Constants, bits: int, shape: tuple[int, int]
) -> np.ndarray:
    """What stands for 0 in each block, (rows, blocks, 1): half the range of numbers without a
    sign, where the file does not tell."""
    name = names[2]
    if not name:
        return np.float32(2 ** (bits - 1) if bits else 0).reshape(1, 1, 1)
    zeros = constants.read(name)
    if zeros.dtype == np.uint8:
        zeros = _levels(zeros.reshape(shape[0], -1), bits).reshape(shape[0], -1)[:, : shape[1]]
    return zeros.astype(np.float32).reshape(*shape, 1)

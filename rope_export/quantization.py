"""Weights quantized to 8 or 4 bits: blocks of one column with a scale, as MatMulNBits reads them.

A source that is quantized itself is kept bit for bit where the operator can hold it.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from rope_export.errors import InputError, extra

if TYPE_CHECKING:
    from torch import Tensor

Bits = Literal["int8", "int4"]

ACCURACY_LEVELS = {0: "the kernel's choice", 1: "float32", 4: "int8"}
"""What onnxruntime's kernel may round activations to, by MatMulNBits' accuracy_level."""


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """How projections are stored and multiplied.

    bits: 8 or 4. block_size: inputs that share a scale, in what is quantized here; a power of two,
    16 at least. What is kept as the source has it has the source's own.
    accuracy_level: 4 rounds activations to int8, block by block, which is what makes it fast on a
    CPU; 1 keeps them in float32; 0 leaves it to the kernel.
    """

    bits: int
    block_size: int = 32
    accuracy_level: int = 4

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise InputError(f"bits={self.bits}: use 4 or 8.")
        if self.block_size < 16 or self.block_size & (self.block_size - 1):
            raise InputError(
                f"block_size={self.block_size}: MatMulNBits takes a power of two, 16 or more."
            )
        if self.accuracy_level not in ACCURACY_LEVELS:
            raise InputError(
                f"accuracy_level={self.accuracy_level}: use one of "
                f"{', '.join(map(str, ACCURACY_LEVELS))}."
            )


def quantization_of(
    weights: str | None, block_size: int, accuracy_level: int
) -> Quantization | None:
    """The quantization that is asked for by "int8", "int4" or nothing.

    Raises: InputError for another word, and for sizes and levels that there are not.
    """
    if weights is None:
        return None
    bits = {"int8": 8, "int4": 4}
    if weights not in bits:
        raise InputError(f"weights={weights!r}: use one of {', '.join(bits)}, or none.")
    return Quantization(bits=bits[weights], block_size=block_size, accuracy_level=accuracy_level)


Stored = Literal["kept", "kept, offsets rounded", "requantized", "quantized"]
"""How a projection's weight came about: as the source has it, bit for bit; so, but for offsets that
are rounded to the weight's dtype; anew, from a source that is quantized in a way that cannot be
held; from one that is not quantized."""


@dataclass(frozen=True, kw_only=True)
class Packed:
    """One projection's weight (out, in).

    packed: uint8 (out, blocks, bytes of a block). scales: (out, blocks), of the weight's dtype.
    zeros: what stands for 0 in each block, half the range without: uint8 (out, blocks), two in a
    byte where the weight has 4 bits. offsets: (blocks, out), of the weight's dtype, what is added
    to every value of a block, as formats with a minimum need it; the operator has none, so it is
    multiplied with the sum of the block's inputs beside it.
    """

    packed: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray | None = None
    offsets: np.ndarray | None = None
    stored: Stored = "quantized"

    def block_size(self, bits: int) -> int:
        """Inputs that share a scale."""
        return self.packed.shape[2] * 8 // bits


def is_quantized(name: str) -> bool:
    """Whether a tensor of the layer is quantized where weights are: the projections are."""
    return name.endswith("_proj.weight")


def pack(weight: "Tensor", quantization: Quantization) -> Packed:
    """The weight (out, in) quantized by onnxruntime's own quantizer, symmetric.

    Raises: UnavailableError if onnxruntime is not installed.
    """
    from rope_export.arrays import to_numpy

    with extra("cpu", "quantizing weights"), _root_logger_kept():
        from onnxruntime.quantization.matmul_nbits_quantizer import (
            DefaultWeightOnlyQuantConfig,
            DefaultWeightOnlyQuantizer,
        )
    config = DefaultWeightOnlyQuantConfig(
        block_size=quantization.block_size, is_symmetric=True, bits=quantization.bits
    )
    columns = np.ascontiguousarray(to_numpy(weight).T)
    packed, scales, _ = DefaultWeightOnlyQuantizer(config).qbits_block_quant(columns)
    return Packed(packed=packed, scales=scales.reshape(packed.shape[:2]))


@contextmanager
def _root_logger_kept() -> Iterator[None]:
    """onnxruntime's quantizer, when it is imported, has every package log to stderr."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def unpack(stored: Packed, quantization: Quantization, inputs: int) -> np.ndarray:
    """The weight (out, inputs) that is stored: (value - zero) * scale + offset, rounded once.

    Source: onnxruntime's description of MatMulNBits.
    """
    values: np.ndarray = stored.packed
    if quantization.bits == 4:
        values = _halves(values)
    wide = (values.astype(np.float32) - _zeros(stored, quantization.bits)) * _wide(stored.scales)
    if stored.offsets is not None:
        wide = wide + _wide(stored.offsets.T)
    weight = wide.astype(stored.scales.dtype).reshape(wide.shape[0], -1)
    return np.ascontiguousarray(weight[:, :inputs])


def _wide(blocks: np.ndarray) -> np.ndarray:
    """(out, blocks) as float32, ready to meet (out, blocks, values of a block)."""
    return blocks.astype(np.float32)[..., None]


def _halves(packed: np.ndarray) -> np.ndarray:
    """Both 4-bit values of each byte, the lower first."""
    return np.stack((packed & 15, packed >> 4), axis=-1).reshape(*packed.shape[:-1], -1)


def _zeros(stored: Packed, bits: int) -> np.ndarray | np.float32:
    """What stands for 0, as float32."""
    zeros = stored.zeros
    if zeros is None:
        return np.float32(2 ** (bits - 1))
    if bits == 4:
        zeros = _halves(zeros)[:, : stored.packed.shape[1]]
    return _wide(zeros)

"""Weights stored in 8 or 4 bits: blocks of one column with a scale, as MatMulNBits reads them."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

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

    bits: 8 or 4. block_size: inputs that share a scale; a power of two, 16 at least.
    accuracy_level: 4 rounds activations to int8, block by block, which is what makes it fast on a
    CPU; 1 keeps them in float32; 0 leaves it to the kernel.
    """

    bits: int
    block_size: int = 32
    accuracy_level: int = 4

    def __post_init__(self) -> None:
        if self.block_size < 16 or self.block_size & (self.block_size - 1):
            raise InputError(
                f"block_size={self.block_size}: MatMulNBits takes a power of two, 16 or more."
            )
        if self.accuracy_level not in ACCURACY_LEVELS:
            raise InputError(
                f"accuracy_level={self.accuracy_level}: use one of "
                f"{', '.join(map(str, ACCURACY_LEVELS))}."
            )

    def to_json(self) -> dict[str, int]:
        return dict(vars(self))

    @classmethod
    def from_json(cls, facts: Mapping[str, Any] | None) -> "Quantization | None":
        return None if facts is None else cls(**facts)


@dataclass(frozen=True, kw_only=True)
class Packed:
    """One projection's weight (out, in). packed: uint8 (out, blocks, bytes of a block); a value is
    stored with half its range added. scales: (out, blocks), of the weight's dtype."""

    packed: np.ndarray
    scales: np.ndarray


def is_quantized(name: str) -> bool:
    """Whether a tensor of the layer is stored in few bits: the projections are."""
    return name.endswith("_proj.weight")


def pack(weight: "Tensor", how: Quantization) -> Packed:
    """The weight (out, in) in few bits, by onnxruntime's own quantizer, symmetric.

    Raises: UnavailableError if onnxruntime is not installed.
    """
    from rope_export.runtimes import to_numpy

    with extra("cpu", "storing weights in few bits"), _root_logger_kept():
        from onnxruntime.quantization.matmul_nbits_quantizer import (
            DefaultWeightOnlyQuantConfig,
            DefaultWeightOnlyQuantizer,
        )
    asked = DefaultWeightOnlyQuantConfig(
        block_size=how.block_size, is_symmetric=True, bits=how.bits
    )
    columns = np.ascontiguousarray(to_numpy(weight).T)
    packed, scales, _ = DefaultWeightOnlyQuantizer(asked).qbits_block_quant(columns)
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


def unpack(stored: Packed, how: Quantization, inputs: int) -> np.ndarray:
    """The weight (out, inputs) that the stored one stands for: value times scale, rounded once.

    Source: onnxruntime's description of MatMulNBits.
    """
    values = stored.packed.astype(np.int16)
    if how.bits == 4:
        values = np.stack((values & 15, values >> 4), axis=-1).reshape(*values.shape[:2], -1)
    values = values - 2 ** (how.bits - 1)
    wide = values.astype(np.float32) * stored.scales.astype(np.float32)[..., None]
    weight = wide.astype(stored.scales.dtype).reshape(wide.shape[0], -1)
    return np.ascontiguousarray(weight[:, :inputs])


def deployed(weights: "Mapping[str, Tensor]", how: Quantization | None) -> "dict[str, Tensor]":
    """The weights as a runtime will see them: projections packed and unpacked."""
    from rope_export.runtimes import to_torch

    if how is None:
        return dict(weights)
    return {
        name: to_torch(unpack(pack(weight, how), how, weight.shape[1]))
        if is_quantized(name)
        else weight
        for name, weight in weights.items()
    }

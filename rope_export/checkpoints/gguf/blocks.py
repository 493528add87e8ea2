"""ggml's blocks of integers, taken apart: what gguf's own dequantization multiplies.

Source: ggml-org/llama.cpp, ggml/src/ggml-common.h (the structures) and gguf-py, gguf/quants.py.
"""

from collections.abc import Callable

import numpy as np
import torch

from rope_export.checkpoints.integers import Integers, evenly

Parts = dict[str, np.ndarray]
"""Arrays of a weight's blocks: values uint8 (blocks, n); scales, and zeros or
minimums, (blocks, groups of a block)."""


def integers_of(data: np.ndarray, kind: str) -> Integers | None:
    """A weight's integers, or nothing for a kind of block that has none with one scale.

    data: uint8 (out, bytes of a row). kind: ggml's name of the type.
    """
    if kind not in KINDS or data.ndim != 2:
        return None
    size, bits, group, parts = KINDS[kind]
    rows = len(data)
    block_arrays = parts(np.ascontiguousarray(data).view(np.uint8).reshape(-1, size))
    arrays = {
        name: torch.from_numpy(array.reshape(rows, -1)) for name, array in block_arrays.items()
    }
    inputs = arrays["values"].shape[1]
    return Integers(bits=bits, groups=evenly(inputs, inputs // group, group), **arrays)


def _half(block: np.ndarray, at: int) -> np.ndarray:
    return block[:, at : at + 2].copy().view(np.float16)


def _nibbles(packed: np.ndarray) -> np.ndarray:
    """The low halves of all bytes, then the high ones."""
    return np.concatenate((packed & 15, packed >> 4), axis=1)


def _zeros(blocks: np.ndarray, zero: int, groups: int = 1) -> np.ndarray:
    return np.full((len(blocks), groups), zero, np.int32)


def _q4_0(blocks: np.ndarray) -> Parts:
    return {
        "values": _nibbles(blocks[:, 2:]),
        "scales": _half(blocks, 0),
        "zeros": _zeros(blocks, 8),
    }


def _q4_1(blocks: np.ndarray) -> Parts:
    return {
        "values": _nibbles(blocks[:, 4:]),
        "scales": _half(blocks, 0),
        "minimums": _half(blocks, 2),
    }


def _fifths(high: np.ndarray, packed: np.ndarray) -> np.ndarray:
    """Integers of five bits: four of each from its nibble, the fifth from a word for all."""
    bits = np.unpackbits(high, axis=1, bitorder="little")
    return _nibbles(packed) | (bits << 4)


def _q5_0(blocks: np.ndarray) -> Parts:
    values = _fifths(blocks[:, 2:6], blocks[:, 6:])
    return {"values": values, "scales": _half(blocks, 0), "zeros": _zeros(blocks, 16)}


def _q5_1(blocks: np.ndarray) -> Parts:
    values = _fifths(blocks[:, 4:8], blocks[:, 8:])
    return {"values": values, "scales": _half(blocks, 0), "minimums": _half(blocks, 2)}


def _q8_0(blocks: np.ndarray) -> Parts:
    values = (blocks[:, 2:].view(np.int8).astype(np.int16) + 128).astype(np.uint8)
    return {"values": values, "scales": _half(blocks, 0), "zeros": _zeros(blocks, 128)}


def _scales_and_minimums(blocks: np.ndarray) -> Parts:
    """Eight scales and minimums of 6 bits in 12 bytes, times the block's own two."""
    packed = blocks[:, 4:16].astype(np.uint8)
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate((first & 63, (third & 15) | ((first >> 6) << 4)), axis=1)
    minimums = np.concatenate((second & 63, (third >> 4) | ((second >> 6) << 4)), axis=1)
    d, dmin = _half(blocks, 0).astype(np.float32), _half(blocks, 2).astype(np.float32)
    return {"scales": d * scales, "minimums": -(dmin * minimums)}


def _q4_k(blocks: np.ndarray) -> Parts:
    packed = blocks[:, 16:].reshape(-1, 4, 32)
    values = np.stack((packed & 15, packed >> 4), axis=2).reshape(len(blocks), 256)
    return {"values": values, **_scales_and_minimums(blocks)}


def _q5_k(blocks: np.ndarray) -> Parts:
    packed = blocks[:, 48:].reshape(-1, 4, 32)
    low = np.stack((packed & 15, packed >> 4), axis=2).reshape(-1, 8, 32)
    high = (blocks[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[None, :, None]) & 1
    return {"values": (low | (high << 4)).reshape(len(blocks), 256), **_scales_and_minimums(blocks)}


def _q6_k(blocks: np.ndarray) -> Parts:
    low = blocks[:, :128].reshape(-1, 2, 1, 64) >> np.array([0, 4], np.uint8)[:, None] & 15
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
    values = low.reshape(-1, 256) | (high.reshape(-1, 256) << 4)
    block_scale = _half(blocks, 208).astype(np.float32)
    scales = blocks[:, 192:208].view(np.int8).astype(np.float32) * block_scale
    return {"values": values, "scales": scales, "zeros": _zeros(blocks, 32, 16)}


KINDS: dict[str, tuple[int, int, int, Callable[[np.ndarray], Parts]]] = {
    "Q4_0": (18, 4, 32, _q4_0),
    "Q4_1": (20, 4, 32, _q4_1),
    "Q5_0": (22, 5, 32, _q5_0),
    "Q5_1": (24, 5, 32, _q5_1),
    "Q8_0": (34, 8, 32, _q8_0),
    "Q4_K": (144, 4, 32, _q4_k),
    "Q5_K": (176, 5, 32, _q5_k),
    "Q6_K": (210, 6, 16, _q6_k),
}
"""By type of block: its bytes, bits of an integer, inputs that share a scale, and its parts."""

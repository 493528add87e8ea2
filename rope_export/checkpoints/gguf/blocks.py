"""ggml's blocks of integers, taken apart: what gguf's own dequantization multiplies.

Source: ggml-org/llama.cpp, ggml/src/ggml-common.h (the structures) and gguf-py, gguf/quants.py.
"""

from collections.abc import Callable

import numpy as np
import torch

from rope_export.checkpoints.integers import Integers, evenly

Parts = dict[str, np.ndarray]
"""values uint8 (blocks, n); scales, and zeros or minimums, (blocks, groups of a block)."""


def integers_of(data: np.ndarray, kind: str) -> Integers | None:
    """A weight's integers, or nothing for a kind of block that has none with one scale.

    data: uint8 (out, bytes of a row). kind: ggml's name of the type.
    """
    if kind not in KINDS or data.ndim != 2:
        return None
    size, bits, group, parts = KINDS[kind]
    rows = len(data)
    made = parts(np.ascontiguousarray(data).view(np.uint8).reshape(-1, size))
    arrays = {name: torch.from_numpy(x.reshape(rows, -1)) for name, x in made.items()}
    inputs = arrays["values"].shape[1]
    return Integers(bits=bits, groups=evenly(inputs, inputs // group, group), **arrays)


def _half(block: np.ndarray, at: int) -> np.ndarray:
    return block[:, at : at + 2].copy().view(np.float16)


def _nibbles(packed: np.ndarray) -> np.ndarray:
    """Low halves of all bytes, then the high ones."""
    return np.concatenate((packed & 15, packed >> 4), axis=1)


def _zeros(blocks: np.ndarray, zero: int, groups: int = 1) -> np.ndarray:
    return np.full((len(blocks), groups), zero, np.int32)


def _q4_0(b: np.ndarray) -> Parts:
    return {"values": _nibbles(b[:, 2:]), "scales": _half(b, 0), "zeros": _zeros(b, 8)}


def _q4_1(b: np.ndarray) -> Parts:
    return {"values": _nibbles(b[:, 4:]), "scales": _half(b, 0), "minimums": _half(b, 2)}


def _fifths(high: np.ndarray, packed: np.ndarray) -> np.ndarray:
    """Four bits of each, and the fifth out of a word for all."""
    bits = np.unpackbits(high, axis=1, bitorder="little")
    return _nibbles(packed) | (bits << 4)


def _q5_0(b: np.ndarray) -> Parts:
    values = _fifths(b[:, 2:6], b[:, 6:])
    return {"values": values, "scales": _half(b, 0), "zeros": _zeros(b, 16)}


def _q5_1(b: np.ndarray) -> Parts:
    values = _fifths(b[:, 4:8], b[:, 8:])
    return {"values": values, "scales": _half(b, 0), "minimums": _half(b, 2)}


def _q8_0(b: np.ndarray) -> Parts:
    values = (b[:, 2:].view(np.int8).astype(np.int16) + 128).astype(np.uint8)
    return {"values": values, "scales": _half(b, 0), "zeros": _zeros(b, 128)}


def _scales_and_minimums(b: np.ndarray) -> Parts:
    """Eight scales and minimums of 6 bits in 12 bytes, times the block's own two."""
    packed = b[:, 4:16].astype(np.uint8)
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate((first & 63, (third & 15) | ((first >> 6) << 4)), axis=1)
    minimums = np.concatenate((second & 63, (third >> 4) | ((second >> 6) << 4)), axis=1)
    d, dmin = _half(b, 0).astype(np.float32), _half(b, 2).astype(np.float32)
    return {"scales": d * scales, "minimums": -(dmin * minimums)}


def _q4_k(b: np.ndarray) -> Parts:
    packed = b[:, 16:].reshape(-1, 4, 32)
    values = np.stack((packed & 15, packed >> 4), axis=2).reshape(len(b), 256)
    return {"values": values, **_scales_and_minimums(b)}


def _q5_k(b: np.ndarray) -> Parts:
    packed = b[:, 48:].reshape(-1, 4, 32)
    low = np.stack((packed & 15, packed >> 4), axis=2).reshape(-1, 8, 32)
    high = (b[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[None, :, None]) & 1
    return {"values": (low | (high << 4)).reshape(len(b), 256), **_scales_and_minimums(b)}


def _q6_k(b: np.ndarray) -> Parts:
    low = b[:, :128].reshape(-1, 2, 1, 64) >> np.array([0, 4], np.uint8)[:, None] & 15
    high = b[:, 128:192].reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
    values = low.reshape(-1, 256) | (high.reshape(-1, 256) << 4)
    scales = b[:, 192:208].view(np.int8).astype(np.float32) * _half(b, 208).astype(np.float32)
    return {"values": values, "scales": scales, "zeros": _zeros(b, 32, 16)}


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
"""By type: bytes of a block, bits of an integer, inputs that share a scale, and its parts."""

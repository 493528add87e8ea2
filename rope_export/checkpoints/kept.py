"""A quantized source's integers in the form of MatMulNBits, where it can hold them."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from rope_export.arrays import to_numpy
from rope_export.checkpoints.integers import Integers
from rope_export.quantization import Packed

LARGEST, SMALLEST = 128, 16
"""Sizes of blocks that every kernel takes."""


def packed_integers(source: Integers, bits: int, dtype: torch.dtype) -> Packed | None:
    """The source's integers, scales and zero points as MatMulNBits takes them.

    None where it cannot: groups that do not follow one another (act-order) or are no multiple of 16
    inputs, more bits, scales that `dtype` cannot hold, zero points beyond the integers.

    A minimum becomes the zero point that is nearest to it, and an offset of half a step at most.
    bits: of the operator, 8 or 4. Fewer in the source are held in more.
    """
    block = _block_size(source)
    scales = source.scales.to(dtype)
    if block is None or source.bits > bits:
        return None
    if not torch.equal(scales.float(), source.scales.float()):
        return None
    zeros, offsets = source.zeros, None
    if zeros is None:
        if source.values.shape[1] % block:
            return None
        zeros, offsets = _zeros_and_offsets(source, dtype)
    values, held_zeros = _shifted(source.values, zeros, bits)
    if held_zeros is not None:
        lowest, highest = int(held_zeros.min()), int(held_zeros.max())
        if not 0 <= lowest <= highest < 2**bits:
            return None
    blocks = -(-values.shape[1] // block)
    first = source.groups[::block]  # every block lies in one group
    exact = offsets is None or _stands_for(source, zeros, offsets, dtype)
    return Packed(
        packed=_packed(values, blocks * block, bits).reshape(len(values), blocks, -1),
        scales=to_numpy(scales[:, first].contiguous()),
        zeros=None
        if held_zeros is None
        else _packed(held_zeros[:, first].to(torch.uint8), blocks, bits),
        offsets=None if offsets is None else to_numpy(offsets[:, first].t().contiguous()),
        stored="kept" if exact else "kept, offsets rounded",
    )


def _block_size(source: Integers) -> int | None:
    """The largest power of two, of those that every kernel takes, that groups can be cut into."""
    inputs, size = source.values.shape[1], source.group_size
    if size is None:
        return None
    if source.scales.shape[1] == 1:  # one scale for all inputs: any size will do
        size = 1 << (inputs.bit_length() - 1)
    fitting = min(size & -size, LARGEST)
    return fitting if fitting >= SMALLEST else None


def _zeros_and_offsets(source: Integers, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """The integers that are nearest to 0, and what their values are off by; no offsets where every
    minimum is a whole number of steps."""
    assert source.minimums is not None
    scales, minimums = source.scales.double(), source.minimums.double()
    steps = torch.where(scales == 0, 0.0, -minimums / torch.where(scales == 0, 1.0, scales))
    zeros = torch.round(steps).clamp(0, 2**source.bits - 1)
    offsets = (minimums + zeros * scales).to(dtype)
    return zeros.int(), offsets if offsets.any() else None


def _stands_for(source: Integers, zeros: Tensor, offsets: Tensor, dtype: torch.dtype) -> bool:
    """Whether integers less these zeros, times the scale, plus the offset are the weight itself."""
    whole = replace(source, zeros=zeros, minimums=None).weight()
    with_offsets = whole + offsets.float()[:, source.groups]
    return torch.equal(with_offsets.to(dtype), source.weight().to(dtype))


def _shifted(values: Tensor, zeros: Tensor, bits: int) -> tuple[Tensor, Tensor | None]:
    """The integers moved so that half the range stands for 0, which needs no zero points; as they
    are where their zeros differ or the range does not reach."""
    half, zero = 2 ** (bits - 1), int(zeros.flatten()[0])
    moved = values.int() + (half - zero)
    if (zeros == zero).all() and 0 <= int(moved.min()) <= int(moved.max()) < 2**bits:
        return moved.to(torch.uint8), None
    return values, zeros


def _packed(values: Tensor, width: int, bits: int) -> np.ndarray:
    """uint8 (out, in) filled up to `width` columns, two in a byte where they have 4 bits."""
    width += width % 2 if bits == 4 else 0
    wide = np.pad(values.numpy(), [(0, 0), (0, width - values.shape[1])])
    return wide if bits == 8 else wide[:, 0::2] | (wide[:, 1::2] << 4)

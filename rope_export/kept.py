"""A quantized source's integers in the form of MatMulNBits, where it can hold them."""

import numpy as np
import torch
from torch import Tensor

from rope_export.checkpoints.integers import Integers
from rope_export.quantized import Packed
from rope_export.runtimes import to_numpy

LARGEST, SMALLEST = 128, 16
"""Sizes of blocks that every kernel takes."""


def kept(source: Integers, bits: int, dtype: torch.dtype) -> Packed | None:
    """The same integers, scales and zero points, or nothing where the operator cannot hold them:
    groups that do not follow one another (act-order) or are no multiple of 16 inputs, more bits,
    scales that `dtype` cannot hold, zero points beyond the integers.

    bits: of the operator, 8 or 4. Fewer in the source are held in more.
    """
    block = _block_size(source)
    scales = source.scales.to(dtype)
    if (
        block is None
        or source.bits > bits
        or not torch.equal(scales.float(), source.scales.float())
    ):
        return None
    zeros = source.zeros if source.minimums is None else _as_zeros(source)
    rounded = None
    if zeros is None:
        rounded = _rounded_zeros(source, scales) if bits == 4 else None
        if rounded is None:
            return None
    values = source.values
    if zeros is not None:
        values, zeros = _shifted(values, zeros, bits)
        if zeros is not None and not 0 <= int(zeros.min()) <= int(zeros.max()) < 2**bits:
            return None
    blocks = -(-values.shape[1] // block)
    first = source.groups[::block]  # every block lies in one group
    packed = _packed(values, blocks * block, bits).reshape(len(values), blocks, -1)
    held = None
    if rounded is not None:
        held = to_numpy(rounded[:, first].contiguous())
    elif zeros is not None:
        held = _packed(zeros[:, first].to(torch.uint8), blocks, bits)
    return Packed(
        packed=packed,
        scales=to_numpy(scales[:, first].contiguous()),
        zeros=held,
        stored="kept" if rounded is None else "kept, zero points rounded",
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


def _as_zeros(source: Integers) -> Tensor | None:
    """Integers that stand for 0, where every minimum is so many steps below it."""
    assert source.minimums is not None
    scales, minimums = source.scales.float(), source.minimums.float()
    zeros = torch.round(-minimums / torch.where(scales == 0, 1.0, scales))
    exact = torch.equal(-zeros * scales, minimums) and bool((zeros.abs() < 2**15).all())
    return zeros.int() if exact else None


def _rounded_zeros(source: Integers, scales: Tensor) -> Tensor | None:
    """Floating zero points, -minimum / scale rounded once to the dtype of the scales."""
    assert source.minimums is not None
    wide = -source.minimums.double() / source.scales.double()
    zeros = torch.where(source.minimums == 0, 0.0, wide).to(scales.dtype)
    return zeros if bool(torch.isfinite(zeros).all()) else None


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

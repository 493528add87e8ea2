"""Weights of quantized checkpoints: small integers with a scale for a group of inputs."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

Take = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Integers:
    """A weight (out, in) in integers; its value is (integer - zero) * scale, or integer * scale +
    minimum, in float32.

    bits: of an integer. values: uint8 (out, in), below 2**bits. scales: floating (out, groups).
    zeros: int32 (out, groups), the integer that stands for 0; minimums: floating (out, groups); a
    weight has one of the two. groups: int64 (in), the group that each input belongs to.
    """

    bits: int
    values: Tensor
    scales: Tensor
    zeros: Tensor | None = None
    minimums: Tensor | None = None
    groups: Tensor

    @property
    def group_size(self) -> int | None:
        """How many inputs, one after the other, share a scale; None where the groups lie
        otherwise."""
        inputs, groups = self.values.shape[1], self.scales.shape[1]
        size = -(-inputs // groups)
        # Where the last group is shorter than the others, the size is the power of two above.
        for candidate in (size, 1 << (size - 1).bit_length()):
            if torch.equal(self.groups, torch.arange(inputs) // candidate):
                return candidate
        return None

    def weight(self) -> Tensor:
        """What the integers stand for: float32 (out, in), before any rounding to a dtype."""
        scales = self.scales.float()[:, self.groups]
        if self.minimums is not None:
            return self.values.float() * scales + self.minimums.float()[:, self.groups]
        assert self.zeros is not None
        return (self.values.int() - self.zeros[:, self.groups]).float() * scales

    def taken(self, take: Take) -> "Integers | None":
        """The integers of the rows that `take` takes out of the weight, or nothing where it does
        anything else with it."""
        outputs, inputs = self.values.shape
        rows = torch.arange(outputs, dtype=torch.int32)[:, None].expand(outputs, inputs)
        columns = torch.arange(inputs, dtype=torch.int32)[None].expand(outputs, inputs)
        chosen, order = take(rows), take(columns)
        if chosen.ndim != 2 or chosen.shape[1] != inputs:
            return None
        if not (chosen == chosen[:, :1]).all() or not (order == columns[:1]).all():
            return None
        kept = chosen[:, 0].long()
        return replace(
            self,
            values=self.values[kept],
            scales=self.scales[kept],
            zeros=None if self.zeros is None else self.zeros[kept],
            minimums=None if self.minimums is None else self.minimums[kept],
        )


def unpacked(words: Tensor, bits: int, count: int) -> Tensor:
    """Unsigned integers out of 32-bit words, which hold them one after the other from the lowest
    bit on, over the words' ends.

    words: int32 (..., words). count: of integers in the last axis. Returns: uint8 (..., count).
    """
    whole = words.long() & 0xFFFFFFFF
    start = torch.arange(count) * bits
    word, offset = start // 32, start % 32
    after = torch.clamp(word + 1, max=whole.shape[-1] - 1)
    wide = whole[..., word] | (whole[..., after] << 32)
    # A 64-bit shift to the right fills with the sign, which the mask takes away again.
    return ((wide >> offset) & (2**bits - 1)).to(torch.uint8)


def evenly(inputs: int, groups: int, size: int) -> Tensor:
    """The group of each input, where `size` inputs after one another share one; -1: all of them."""
    if size == -1 or groups == 1:
        return torch.zeros(inputs, dtype=torch.int64)
    return torch.arange(inputs) // size

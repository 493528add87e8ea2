"""Frequencies of vision towers, whose positions have two axes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from rope_export.rope.base import RopeSpec
from rope_export.rope.default import plain_inv_freq


@dataclass(frozen=True, kw_only=True)
class AxialRope(RopeSpec):
    """Half of the pairs rotate with the row, half with the column, each at the same frequencies
    theta ** (-4i / rotary_dim).

    Source: transformers 5.23, models/qwen2_vl, whose vision pairs are all rows, then all columns.
    """

    rope_type = "axial"
    published = False

    def inv_freq(self, length: Tensor | None = None) -> Tensor:
        return plain_inv_freq(self.rotary_dim // 2, self.theta).repeat(2)


@dataclass(frozen=True, kw_only=True)
class AlternatingRope(RopeSpec):
    """Rows rotate at every second frequency of a plain head, columns at those between.

    Source: transformers 5.23, models/pixtral.
    """

    rope_type = "alternating"
    published = False

    def inv_freq(self, length: Tensor | None = None) -> Tensor:
        plain = plain_inv_freq(self.rotary_dim, self.theta)
        return torch.cat((plain[0::2], plain[1::2]))


def halves(rotary_dim: int) -> tuple[int, ...]:
    """The axis of each pair: rows first, then columns."""
    return (0,) * (rotary_dim // 4) + (1,) * (rotary_dim // 4)

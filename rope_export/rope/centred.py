"""Frequencies of towers whose positions are fractions of the image."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rope_export.rope.base import RopeSpec


@dataclass(frozen=True, kw_only=True)
class CentredRope(RopeSpec):
    """A patch rotates by 2 pi times its centre's place in the image, from -1 to 1 on either axis,
    at theta ** (-4i / rotary_dim). Half of the pairs rotate with the row, half with the column.

    Rows and columns are counted from 0, the image's size being one more than the largest of the
    call; a negative position is a token that does not rotate, such as a class token.
    Source: DINOv3, arXiv:2508.10104, section 3.2; transformers 5.23, models/dinov3_vit.
    """

    rope_type = "centred"
    published = False
    depends_on_length = True

    def inv_freq(self, length: Tensor | None = None) -> Tensor:
        with torch.device("cpu"):
            exponent = torch.arange(0, 1, 4 / self.rotary_dim, dtype=torch.float32)
            return (1 / self.theta**exponent).repeat(2)

    def coordinates(self, position_ids: Tensor) -> Tensor:
        """position_ids: (2, B, S). Returns: float32, 2 pi times the place from -1 to 1."""
        size = position_ids.amax(dim=(1, 2), keepdim=True) + 1
        places = 2.0 * ((position_ids.float() + 0.5) / size.float()) - 1.0
        return torch.where(position_ids < 0, 0.0, 2 * math.pi * places)

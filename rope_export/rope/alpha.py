"""HunYuan's scaling of the base by a fixed alpha."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from rope_export.errors import SpecError
from rope_export.rope.base import RopeSpec
from rope_export.rope.default import plain_inv_freq


@dataclass(frozen=True, kw_only=True)
class AlphaRope(RopeSpec):
    """theta * alpha ** (d / (d - 2)), whatever the length.

    HunYuan's configs call it "dynamic" with an `alpha`; nothing in it is dynamic.
    Source: transformers 5.23, models/hunyuan_v1_dense.
    """

    rope_type = "alpha"
    published = False
    hf_keys: ClassVar[dict[str, str]] = {"alpha": "alpha"}

    alpha: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha <= 0 or self.rotary_dim < 4:
            raise SpecError(
                f"rope alpha={self.alpha}, rotary_dim={self.rotary_dim}: alpha must be positive "
                f"and rotary_dim at least 4."
            )

    def inv_freq(self, length: Tensor | None = None) -> Tensor:
        theta = self.theta * self.alpha ** (self.rotary_dim / (self.rotary_dim - 2))
        return plain_inv_freq(self.rotary_dim, theta)

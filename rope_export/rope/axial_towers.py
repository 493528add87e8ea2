"""Frequencies of vision towers that lay out their axes in other ways than rows, then columns."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from rope_export.errors import SpecError
from rope_export.rope.base import RopeSpec
from rope_export.rope.default import plain_inv_freq


@dataclass(frozen=True, kw_only=True)
class AxialByTurnsRope(RopeSpec):
    """Two pairs at each frequency theta ** (-4i / rotary_dim), one for either axis, side by side.

    Source: transformers 5.23, models/kimi_k25.
    """

    rope_type = "axial_by_turns"
    published = False

    def inv_freq(self, length: Tensor | None = None) -> Tensor:
        return plain_inv_freq(self.rotary_dim // 2, self.theta).repeat_interleave(2)


@dataclass(frozen=True, kw_only=True)
class SpacedAxialRope(RopeSpec):
    """Half of the pairs rotate with either axis, at the same frequencies. Adjacent patches of the
    grid are `spacing` positions apart, so that a large grid spans as many as the one trained on.

    Source: transformers 5.23, models/sam3.
    """

    rope_type = "spaced_axial"
    published = False
    hf_keys: ClassVar[dict[str, str]] = {"spacing": "spacing"}

    spacing: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.spacing < float("inf"):
            raise SpecError(f"axial rope spacing={self.spacing}: it must be finite and positive.")

    def inv_freq(self, length: Tensor | None = None) -> Tensor:
        return (plain_inv_freq(self.rotary_dim // 2, self.theta) * self.spacing).repeat(2)


@dataclass(frozen=True, kw_only=True)
class VolumeRope(RopeSpec):
    """A third of the pairs rotate with the time, a third with the row, a third with the column,
    each at the same frequencies theta ** (-6i / rotary_dim). Features of a head beyond a multiple
    of six are not rotated.

    Source: transformers 5.23, models/minimax_m3_vl.
    """

    rope_type = "volume"
    published = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rotary_dim % 6:
            raise SpecError(
                f"volume rope rotary_dim={self.rotary_dim}: three axes share the pairs equally, so "
                f"it must be a multiple of 6."
            )

    @classmethod
    def read(
        cls, parameters: dict[str, Any], config: Any, *, head_dim: int, **common: Any
    ) -> "VolumeRope":
        """The variant from a config's rope parameters; the head's width decides how many features
        rotate."""
        common["rotary_dim"] = head_dim // 6 * 6
        return cls(**common)

    def inv_freq(self, length: Tensor | None = None) -> Tensor:
        return plain_inv_freq(self.rotary_dim // 3, self.theta).repeat(3)

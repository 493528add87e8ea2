"""Dynamic NTK scaling: the base grows with the length of the call."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from rope_export.errors import SpecError
from rope_export.rope.base import RopeSpec
from rope_export.rope.default import plain_inv_freq
from rope_export.rope.parameters import at_least_one, context_length, number


@dataclass(frozen=True, kw_only=True)
class DynamicRope(RopeSpec):
    """theta grows once a call goes beyond max_position_embeddings, M: at the length L it is
    theta * (factor * L / M - (factor - 1)) ** (d / (d - 2)).

    The base follows from the call's own length, without memory: a module of transformers that has
    seen a longer call computes other angles for the same positions, a fresh one the same as here.
    Keys cached at one length were rotated with another base than later ones, so that decoding with
    a cache beyond M is not the full forward pass, in any implementation.
    Source: transformers' rope_type "dynamic"; r/LocalLLaMA, "Dynamically Scaled RoPE", 2023.
    """

    rope_type = "dynamic"
    hf_keys: ClassVar[dict[str, str]] = {"factor": "factor"}
    depends_on_length = True

    factor: float
    max_position_embeddings: int

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one("dynamic", self.factor)
        context_length("dynamic", "max_position_embeddings", self.max_position_embeddings)
        if self.rotary_dim < 4:
            raise SpecError(
                f"dynamic rope rotary_dim={self.rotary_dim}: the base grows with the exponent "
                f"d / (d - 2), so it must be at least 4."
            )

    @classmethod
    def read(
        cls, parameters: dict[str, Any], config: Any, *, head_dim: int, **common: Any
    ) -> "DynamicRope":
        trained = int(number(config, "max_position_embeddings"))
        return cls(**common, factor=number(parameters, "factor"), max_position_embeddings=trained)

    def inv_freq(self, length: Tensor | None = None) -> Tensor:
        plain = self.table()
        return plain if length is None else self.chosen(plain.to(length.device), length)

    def table(self) -> Tensor:
        """The frequencies within the trained context."""
        return plain_inv_freq(self.rotary_dim, self.theta)

    def chosen(self, table: Tensor, length: Tensor) -> Tensor:
        """inv_freq of a call of this length, computed in float64.

        In float64 every runtime's power gives the same float32.
        """
        stretch = self.factor * length.double() / self.max_position_embeddings - (self.factor - 1)
        # Below M the power could be that of a negative number; its result is not used there.
        stretch = stretch.clamp(min=1.0)
        theta = self.theta * stretch ** (self.rotary_dim / (self.rotary_dim - 2))
        exponent = torch.arange(0, self.rotary_dim, 2, device=table.device).float()
        stretched = theta ** -(exponent / self.rotary_dim).double()
        return torch.where(length > self.max_position_embeddings, stretched.float(), table)

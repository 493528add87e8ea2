"""Proportional RoPE: the frequencies of the whole head, of which the slow ones are zero."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from rope_export.errors import SpecError
from rope_export.rope.base import RopeSpec
from rope_export.rope.parameters import at_least_one, number


@dataclass(frozen=True, kw_only=True)
class ProportionalRope(RopeSpec):
    """The first `turning_pairs` pairs rotate at the frequencies they have in a whole head, divided
    by `factor`; the others do not rotate. rotary_dim is the whole head.

    Source: transformers' rope_type "proportional".
    """

    rope_type = "proportional"
    reads_partial_factor = True
    hf_keys: ClassVar[dict[str, str]] = {"factor": "factor"}

    turning_pairs: int
    factor: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one("proportional", self.factor)
        if not 0 < self.turning_pairs <= self.rotary_dim // 2:
            raise SpecError(
                f"proportional rope rotates {self.turning_pairs} of {self.rotary_dim // 2} pairs: "
                f"partial_rotary_factor must be above 0 and at most 1."
            )

    @classmethod
    def read(
        cls, parameters: dict[str, Any], config: Any, *, head_dim: int, **common: Any
    ) -> "ProportionalRope":
        """The variant from a config's rope parameters; the partial factor is the share of
        pairs that rotate, not the width of the rotation."""
        part = number(parameters, "partial_rotary_factor", 1.0)
        common["rotary_dim"] = head_dim
        return cls(
            **common,
            turning_pairs=int(part * head_dim // 2),
            factor=number(parameters, "factor", 1.0),
        )

    def inv_freq(self, length: Tensor | None = None) -> Tensor:
        with torch.device("cpu"):
            # Of as many elements as transformers has: torch's power of a longer tensor may differ
            # in the last bit.
            exponents = torch.arange(0, 2 * self.turning_pairs, 2, dtype=torch.float32)
            rotating = 1.0 / self.theta ** (exponents / self.rotary_dim)
        still = torch.zeros(self.rotary_dim // 2 - self.turning_pairs, device="cpu")
        return torch.cat((rotating, still)) / self.factor

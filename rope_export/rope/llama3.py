"""Llama 3.1's scaling in three bands."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from rope_export.errors import SpecError
from rope_export.rope.base import RopeSpec
from rope_export.rope.default import plain_inv_freq
from rope_export.rope.parameters import at_least_one, context_length, number


@dataclass(frozen=True, kw_only=True)
class Llama3Rope(RopeSpec):
    """The frequencies of slow pairs divided by `factor`, those of fast pairs kept, and a blend
    between.

    low_turns, high_turns: full rotations within the original context, below which a pair's
    frequency is divided, and above which it is kept; low_freq_factor and high_freq_factor in a
    config.
    Source: meta-llama/llama-models, models/llama3_1; transformers' rope_type "llama3".
    """

    rope_type = "llama3"
    hf_keys: ClassVar[dict[str, str]] = {
        "factor": "factor",
        "low_freq_factor": "low_turns",
        "high_freq_factor": "high_turns",
        "original_max_position_embeddings": "original_length",
    }

    factor: float
    low_turns: float
    high_turns: float
    original_length: float

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one("llama3", self.factor)
        context_length("llama3", "original_max_position_embeddings", self.original_length)
        if not 0 < self.low_turns < self.high_turns:
            raise SpecError(
                f"llama3 rope low_freq_factor={self.low_turns}, high_freq_factor="
                f"{self.high_turns}: the first must be positive and below the second."
            )

    @classmethod
    def read(
        cls, parameters: dict[str, Any], config: Any, *, head_dim: int, **common: Any
    ) -> "Llama3Rope":
        trained = config.get("max_position_embeddings")
        parameters = {"original_max_position_embeddings": trained} | {
            key: value for key, value in parameters.items() if value is not None
        }
        own_fields: dict[str, Any] = {
            name: number(parameters, key) for key, name in cls.hf_keys.items()
        }
        return cls(**common, **own_fields)

    def inv_freq(self, length: Tensor | None = None) -> Tensor:
        plain = plain_inv_freq(self.rotary_dim, self.theta)
        wavelength = 2 * math.pi / plain
        rotations = self.original_length / wavelength
        keep = (rotations - self.low_turns) / (self.high_turns - self.low_turns)
        blend = (1 - keep) * plain / self.factor + keep * plain
        fast = wavelength < self.original_length / self.high_turns
        slow = wavelength > self.original_length / self.low_turns
        return torch.where(slow, plain / self.factor, torch.where(fast, plain, blend))

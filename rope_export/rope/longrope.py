"""LongRoPE: one factor for each pair, from two lists by the length of the call."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from rope_export.errors import SpecError
from rope_export.rope.base import RopeSpec
from rope_export.rope.default import powers
from rope_export.rope.parameters import (
    at_least_one,
    context_length,
    number,
    optional,
    positive_factor,
)


@dataclass(frozen=True, kw_only=True)
class LongRope(RopeSpec):
    """Frequencies divided pair by pair, by short_factor while the call's length is at most
    original_max_position_embeddings and by long_factor beyond, for every position of the call.

    Keys cached before the switch stay as they were rotated, so that decoding across it is not the
    full forward pass, in any implementation.
    Source: LongRoPE, arXiv:2402.13753, section 3.3; transformers' rope_type "longrope".
    """

    rope_type = "longrope"
    hf_keys: ClassVar[dict[str, str]] = {
        "short_factor": "short_factor",
        "long_factor": "long_factor",
        "factor": "factor",
        "original_max_position_embeddings": "original_length",
        "attention_factor": "factor_given",
    }
    depends_on_length = True

    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    factor: float
    original_length: float
    factor_given: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one("longrope", self.factor)
        context_length("longrope", "original_max_position_embeddings", self.original_length)
        positive_factor("longrope", self.factor_given)
        for name in ("short_factor", "long_factor"):
            values = tuple(getattr(self, name))
            object.__setattr__(self, name, values)
            if len(values) != self.rotary_dim // 2 or not all(value > 0 for value in values):
                raise SpecError(
                    f"longrope {name} has {len(values)} numbers; it must have one positive number "
                    f"for each of the {self.rotary_dim // 2} pairs."
                )

    @classmethod
    def read(
        cls, parameters: dict[str, Any], config: Any, *, head_dim: int, **common: Any
    ) -> "LongRope":
        trained = optional(config, "max_position_embeddings")
        name = "original_max_position_embeddings"
        original = context_length("longrope", name, number(parameters, name, trained))
        factor = optional(parameters, "factor")
        if factor is None and trained is None:
            raise SpecError("config key factor=None: longrope needs it, or both context lengths.")
        if factor is None:
            assert trained is not None
            factor = max(trained / original, 1.0)
        return cls(
            **common,
            short_factor=_factors(parameters, "short_factor"),
            long_factor=_factors(parameters, "long_factor"),
            factor=factor,
            original_length=original,
            factor_given=optional(parameters, "attention_factor"),
        )

    def inv_freq(self, length: Tensor | None = None) -> Tensor:
        table = self.table()
        return table[0] if length is None else self.chosen(table.to(length.device), length)

    def table(self) -> Tensor:
        """The frequencies by short_factor, then by long_factor."""
        theta_powers = powers(self.rotary_dim, self.theta)
        with torch.device("cpu"):
            factors = torch.tensor((self.short_factor, self.long_factor), dtype=torch.float32)
        return 1.0 / (factors * theta_powers)

    def chosen(self, table: Tensor, length: Tensor) -> Tensor:
        return torch.where(length > self.original_length, table[1], table[0])

    @property
    def attention_factor(self) -> float:
        if self.factor_given is not None:
            return self.factor_given
        if self.factor <= 1:
            return 1.0
        return math.sqrt(1 + math.log(self.factor) / math.log(self.original_length))


def _factors(parameters: dict[str, Any], key: str) -> tuple[float, ...]:
    values = parameters.get(key)
    if not isinstance(values, list | tuple) or not all(
        isinstance(value, int | float) for value in values
    ):
        raise SpecError(f"config key {key}={values!r}: longrope needs a list of numbers.")
    return tuple(map(float, values))

"""YaRN: slow pairs are interpolated, fast pairs kept, with a ramp between."""

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


def magnitude(factor: float, mscale: float = 1.0) -> float:
    """g(m) = 0.1 m ln(factor) + 1: what keeps the scores' spread over a stretched context."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


@dataclass(frozen=True, kw_only=True)
class YarnRope(RopeSpec):
    """Pairs that make more than beta_fast full rotations within the original context keep their
    frequency; that of pairs that make less than beta_slow is divided by `factor`.

    truncate: the ramp's ends are rounded outwards to whole pairs. factor_given: the factor on cos
    and sin; without, g(mscale) / g(mscale_all_dim) if both are there, else g(1).
    Source: YaRN, arXiv:2309.00071, section 3.2 and 3.4; transformers' rope_type "yarn".
    """

    rope_type = "yarn"
    hf_keys: ClassVar[dict[str, str]] = {
        "factor": "factor",
        "original_max_position_embeddings": "original_length",
        "beta_fast": "beta_fast",
        "beta_slow": "beta_slow",
        "truncate": "truncate",
        "mscale": "mscale",
        "mscale_all_dim": "mscale_all_dim",
        "attention_factor": "factor_given",
    }

    factor: float
    original_length: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    mscale: float | None = None
    mscale_all_dim: float | None = None
    factor_given: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one("yarn", self.factor)
        context_length("yarn", "original_max_position_embeddings", self.original_length)
        if not self.beta_fast >= self.beta_slow > 0:
            raise SpecError(
                f"yarn rope beta_fast={self.beta_fast}, beta_slow={self.beta_slow}: fast pairs "
                f"rotate more often, so beta_fast must not be below beta_slow, nor either below 0."
            )
        positive_factor("yarn", self.factor_given)

    @classmethod
    def read(
        cls, parameters: dict[str, Any], config: Any, *, head_dim: int, **common: Any
    ) -> "YarnRope":
        if "factor" not in parameters:
            raise SpecError(
                "config key factor=None: yarn needs it; null, if spelled out, is the ratio."
            )
        trained = optional(config, "max_position_embeddings")
        name = "original_max_position_embeddings"
        original = context_length("yarn", name, number(parameters, name, trained))
        implied = None if trained is None else trained / original
        truncate = parameters.get("truncate", True)
        if not isinstance(truncate, bool):
            raise SpecError(f"config key truncate={truncate!r}: it must be true or false.")
        return cls(
            **common,
            factor=number(parameters, "factor", implied),
            original_length=original,
            beta_fast=optional(parameters, "beta_fast") or 32.0,
            beta_slow=optional(parameters, "beta_slow") or 1.0,
            truncate=truncate,
            mscale=optional(parameters, "mscale"),
            mscale_all_dim=optional(parameters, "mscale_all_dim"),
            factor_given=optional(parameters, "attention_factor"),
        )

    def inv_freq(self, length: Tensor | None = None) -> Tensor:
        theta_powers = powers(self.rotary_dim, self.theta)
        kept, interpolated = 1.0 / theta_powers, 1.0 / (self.factor * theta_powers)
        first, last = self._ramp()
        with torch.device("cpu"):
            pair = torch.arange(self.rotary_dim // 2, dtype=torch.float32)
        slow = ((pair - first) / (last - first)).clamp(0, 1)
        keep = 1 - slow
        return interpolated * (1 - keep) + kept * keep

    def _ramp(self) -> tuple[float, float]:
        """The last pair that is kept whole and the first that is interpolated whole."""

        def pair_of(rotations: float) -> float:
            """The pair, as a fraction, that makes so many rotations within the original context."""
            length = self.original_length / (rotations * 2 * math.pi)
            return self.rotary_dim * math.log(length) / (2 * math.log(self.theta))

        first, last = pair_of(self.beta_fast), pair_of(self.beta_slow)
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, self.rotary_dim - 1)
        return first, last + 0.001 if first == last else last

    @property
    def attention_factor(self) -> float:
        if self.factor_given is not None:
            return self.factor_given
        if self.mscale and self.mscale_all_dim:
            return magnitude(self.factor, self.mscale) / magnitude(self.factor, self.mscale_all_dim)
        return magnitude(self.factor)

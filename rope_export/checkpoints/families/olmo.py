"""OLMo: clamped projections, and norms over the full width of queries and keys."""

from collections.abc import Mapping
from typing import Any

from rope_export.checkpoints.families.base import Config, Facts, Family
from rope_export.checkpoints.families.reading import (
    bias_flag,
    biases,
    eps,
    every_full,
    qk_norms,
    together,
)


def _clipped(config: Config, layer: int) -> Facts:
    clip = config.get("clip_qkv")
    return biases("qkvo", config.flag("attention_bias")) | (
        {} if clip is None else {"clip": float(clip)}
    )


def _wide(config: Config, layer: int) -> Facts:
    return qk_norms(eps(config), over="all")


def _after_attention(config: Config, layer: int) -> Mapping[str, Any] | None:
    """Hybrids without rope parameters have no rotation."""
    return {} if config.get("rope_parameters") or config.get("rope_scaling") else None


def _scaled_where_full(config: Config, layer: int) -> Mapping[str, Any]:
    """Older files have one rotation, that of full attention; layers that slide rotate plainly."""
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kinds = every_full(4)(config)
    by_kind = any(isinstance(value, dict) for value in parameters.values())
    if by_kind or not kinds or kinds[layer] != "sliding_attention":
        return {}
    return {**dict.fromkeys(parameters), "rope_type": "default", "rope_theta": 500_000.0}


OLMO = Family(model_type="olmo", attention=_clipped)
OLMO2 = tuple(
    Family(model_type=name, attention=together(bias_flag(), _wide))
    for name in ("olmo2", "flex_olmo")
)
OLMO3 = Family(
    model_type="olmo3",
    attention=together(bias_flag(), _wide),
    kinds=every_full(4),
    rope=_scaled_where_full,
)
OLMOE = Family(model_type="olmoe", attention=together(_clipped, _wide))
OLMO_HYBRID = Family(
    model_type="olmo_hybrid", attention=together(bias_flag(), _wide), rope=_after_attention
)
MINIMAX_M2 = Family(
    model_type="minimax_m2", attention=_wide, ignored=frozenset({"rotary_dim", "use_qk_norm"})
)

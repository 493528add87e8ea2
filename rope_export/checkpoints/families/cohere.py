"""Cohere: interleaved pairs, norms with weights of their own for each head, NoPE layers."""

from collections.abc import Mapping
from typing import Any

from rope_export.checkpoints.families.base import Config, Facts, Family
from rope_export.checkpoints.families.reading import (
    bias_flag,
    biases,
    eps,
    every_full,
    qk_norms,
    sections,
)


def _normed(config: Config, layer: int) -> Facts:
    facts = biases("qkvo", config.flag("attention_bias"))
    if config.flag("use_qk_norm"):
        facts |= qk_norms(eps(config, "layer_norm_eps"), kind="layer", over="heads")
    return facts


def _only_sliding(config: Config, layer: int) -> Mapping[str, Any] | None:
    kinds = every_full(4, "sliding_window_pattern")(config)
    return {} if kinds and kinds[layer] == "sliding_attention" else None


def _sliding_or_dense(config: Config, layer: int) -> Mapping[str, Any] | None:
    mlps = config.get("mlp_layer_types") or []
    dense = layer < len(mlps) and mlps[layer] == "dense"
    pattern = config.get("prefix_dense_sliding_window_pattern")
    if dense and pattern == 1:
        return {}
    return _only_sliding(config, layer)


COHERE = Family(model_type="cohere", attention=_normed, layout="interleaved")

COHERE2 = Family(
    model_type="cohere2",
    attention=bias_flag(),
    kinds=every_full(4, "sliding_window_pattern"),
    rope=_only_sliding,
    layout="interleaved",
    ignored=frozenset({"use_qk_norm"}),
)

COHERE2_MOE = Family(
    model_type="cohere2_moe",
    attention=bias_flag(),
    rope=_sliding_or_dense,
    layout="interleaved",
    ignored=frozenset({"sliding_window_pattern"}),
)

COHERE_COMPASS = Family(
    model_type="cohere_compass_text",
    attention=bias_flag(),
    ignored=frozenset({"sliding_window_pattern"}),
    rope=sections((24, 20, 20), mixed=True),
)

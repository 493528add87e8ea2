"""Attention layers of models whose other layers are recurrent or convolutional."""

from collections.abc import Mapping
from typing import Any

from rope_export.checkpoints.families.base import Config, Facts, Family
from rope_export.checkpoints.families.reading import (
    all_full,
    bias_flag,
    biases,
    by_layer,
    eps,
    every_full,
    head_norms,
    named_kinds,
    qk_norms,
    scale_of,
    sections,
    together,
)
from rope_export.checkpoints.layout import TensorLayout, gated_queries

ATTENTION = named_kinds(
    {"attention": "full_attention", "hybrid": "full_attention", "full": "full_attention"}
)


def _bamba_kinds(config: Config) -> list[str] | None:
    attending = config.get("attn_layer_indices") or []
    return [
        "full_attention" if layer in attending else "mamba"
        for layer in range(config["num_hidden_layers"])
    ]


def _listed(config: Config) -> list[str] | None:
    """layer_types, or in older files the numbers of the layers that attend."""
    attending = config.get("full_attn_idxs")
    if config.get("layer_types") is not None or attending is None:
        return config.get("layer_types")
    return [
        "full_attention" if layer in attending else "conv"
        for layer in range(config["num_hidden_layers"])
    ]


def _multiplied_keys(config: Config, layer: int) -> Facts:
    """Keys times key_multiplier: the same as a factor on the scores."""
    facts = biases("qkvo", config.flag("attention_bias"))
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    return facts | {"scale": head_dim**-0.5 * float(config.get("key_multiplier") or 1.0)}


def _gated(config: Config, layer: int) -> Facts:
    facts = biases("qkvo", config.flag("attention_bias")) | {"gate": "feature"}
    facts["gate_bias"] = facts["q_bias"]
    return facts | qk_norms(eps(config), offset=1.0)


def _or_none(config: Config, layer: int) -> Mapping[str, Any] | None:
    """No rotation where position_embedding_type is anything but "rope"."""
    return {} if config.get("position_embedding_type", "rope") == "rope" else None


def _recurrent_kinds(config: Config) -> list[str] | None:
    names = config.get("block_types") or config.get("layers_block_type") or []
    if not names:
        return None
    layers = config["num_hidden_layers"]
    names = (list(names) * layers)[:layers]
    return ["sliding_attention" if name == "attention" else name for name in names]


def _lfm3(config: Config, layer: int) -> Facts:
    facts = biases("qkvo", config.flag("attention_bias")) | qk_norms(eps(config, "norm_eps"))
    return facts | ({"gate": "head"} if config.flag("use_attention_gate") else {})


GATED = TensorLayout(fused=gated_queries("q_proj"))

BAMBA = Family(model_type="bamba", attention=bias_flag(), kinds=_bamba_kinds)
FALCON_H1 = Family(
    model_type="falcon_h1",
    attention=_multiplied_keys,
    kinds=all_full,
    ignored=frozenset(
        {"attention_in_multiplier", "attention_out_multiplier", "embedding_multiplier"}
    ),
)
QWEN3_NEXT = Family(
    model_type="qwen3_next",
    attention=_gated,
    tensors=GATED,
    ignored=frozenset({"full_attention_interval"}),
)
QWEN3_5 = tuple(
    Family(
        model_type=name,
        attention=_gated,
        tensors=GATED,
        rope=sections((11, 11, 10), mixed=True),
        ignored=frozenset({"full_attention_interval"}),
    )
    for name in ("qwen3_5_text", "qwen3_5_moe_text")
)
LFM2 = tuple(
    Family(
        model_type=name,
        attention=head_norms("norm_eps"),
        tensors=TensorLayout(
            modules={"o_proj": "out_proj", "q_norm": "q_layernorm", "k_norm": "k_layernorm"}
        ),
        kinds=_listed,
    )
    for name in ("lfm2", "lfm2_moe")
)
LFM3 = Family(
    model_type="lfm3",
    attention=_lfm3,
)
GRANITE_HYBRID = Family(
    model_type="granitemoehybrid",
    attention=together(bias_flag(), scale_of("attention_multiplier")),
    kinds=ATTENTION,
    rope=_or_none,
)
GRANITE_SWA = tuple(
    Family(
        model_type=name,
        attention=together(
            bias_flag(), scale_of("attention_multiplier"), lambda config, layer: {"sinks": True}
        ),
        kinds=every_full(4, first=True),
        rope=by_layer,
    )
    for name in ("granite_swa", "granitemoe_swa")
)
MINIMAX = Family(
    model_type="minimax",
    kinds=lambda config: [
        "sliding_attention" if kind == "full_attention" and config.get("sliding_window") else kind
        for kind in ATTENTION(config) or []
    ],
)
RECURRENT_GEMMA = Family(
    model_type="recurrent_gemma",
    attention=together(bias_flag(parts="qkv"), lambda config, layer: biases("o")),
    kinds=_recurrent_kinds,
    tensors=TensorLayout(layers="layers.{layer}.temporal_block."),
)

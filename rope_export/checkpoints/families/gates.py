"""Families whose heads are multiplied by a gate, or normed, before the output projection."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rope_export.checkpoints.families.base import Config, Facts, Family
from rope_export.checkpoints.families.reading import (
    always,
    bias_flag,
    biases,
    by_layer,
    eps,
    every_full,
    head_norms,
    no_biases,
    qk_norms,
    scale_of,
    together,
)
from rope_export.checkpoints.layout import TensorLayout, equal_blocks, whole
from rope_export.spec import AttentionSpec, NormSpec, PositionScale


def _only_sliding(config: Config, layer: int) -> Mapping[str, Any] | None:
    kinds = every_full(4, "global_attn_every_n_layers")(config)
    return {} if kinds and kinds[layer] == "sliding_attention" else None


def _bitnet(config: Config, layer: int) -> Facts:
    facts = biases("qkvo", config.flag("attention_bias"))
    return facts | {"o_norm": NormSpec(eps=eps(config), over="all")}


def _hrm(config: Config, layer: int) -> Facts:
    config.get("num_key_value_heads")  # as many as heads, whatever the value
    return no_biases(config, layer) | {
        "gate": "feature",
        "kv_heads": config["num_attention_heads"],
    }


def _muse(config: Config, layer: int) -> Facts:
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    head_dim = config.get("head_dim") or hidden // heads
    facts = biases("qkvo", config.flag("attention_bias")) | {"gate": "feature"}
    facts["scale"] = head_dim**-0.5 * float(config["qk_scale_factor"])
    return facts | qk_norms(eps(config), weight=False)


def _every_fourth(config: Config, layer: int) -> Mapping[str, Any] | None:
    """Where no bases are given, each fourth layer from the end does not rotate."""
    if config.get("layer_rope_theta") is not None:
        return by_layer(config, layer)
    return None if (config["num_hidden_layers"] - 1 - layer) % 4 == 0 else {}


def _spark(config: Config, layer: int) -> Facts:
    return _muse(config, layer) | {"o_norm": NormSpec(eps=eps(config), weight=False)}


def _laguna(config: Config, layer: int) -> Facts:
    gating = config.get("gating")
    heads_by_layer = config.get("num_attention_heads_per_layer")
    facts = biases("qkvo", config.flag("attention_bias")) | qk_norms(eps(config))
    facts |= {"heads": heads_by_layer[layer]} if heads_by_layer else {}
    gate = "head" if gating in (True, "per-head") else "feature"
    return facts | {"gate": gate, "gate_kind": "softplus"}


def _step(config: Config, layer: int) -> Facts:
    facts = biases("qkvo", config.flag("attention_bias")) | {"gate": "head"}
    kinds, sliding = config.get("layer_types"), config.get("num_sliding_attention_heads")
    if kinds and kinds[layer] == "sliding_attention" and sliding:
        facts["heads"] = sliding
    facts |= scale_of("query_pre_attn_scalar", -0.5)(config, layer)
    config.get("gating")
    return facts | qk_norms(eps(config), offset=1.0)


def _beam(config: Config, layer: int) -> Facts:
    facts = biases("qkvo", config.flag("attention_bias")) | qk_norms(eps(config))
    facts |= {"gate": "feature", "gate_bias": True}
    kinds = config.get("layer_types")
    if kinds and kinds[layer] == "full_attention":
        facts["position_scale"] = PositionScale(beta=0.1, length=2048, offset=1, form="power")
    return facts


def _head_bias(tensor: Tensor, spec: AttentionSpec) -> Tensor:
    """Repeats the bias of a head for each of its features."""
    return tensor.repeat_interleave(spec.value_head_dim)


G_PROJ = TensorLayout(modules={"gate_proj": "g_proj"})

AFMOE = Family(
    model_type="afmoe",
    attention=together(bias_flag(), head_norms(), always(gate="feature")),
    kinds=every_full(4, "global_attn_every_n_layers"),
    rope=_only_sliding,
)
BITNET = Family(
    model_type="bitnet",
    attention=_bitnet,
    tensors=TensorLayout(modules={"o_norm": "attn_sub_norm"}),
)
HRM = Family(
    model_type="hrm_text",
    attention=_hrm,
    tensors=TensorLayout(
        layers="layers.{layer}.attn.",
        fused=equal_blocks("gqkv_proj", "gate_proj", "q_proj", "k_proj", "v_proj"),
    ),
    towers={"L_module": "hrm_text", "H_module": "hrm_text"},
)
MUSE = tuple(
    Family(model_type=name, attention=attention, rope=_every_fourth)
    for name, attention in (("muse_glimmer_text", _muse), ("muse_spark_text", _spark))
)
LAGUNA = Family(model_type="laguna", attention=_laguna, tensors=G_PROJ)
STEP = Family(model_type="step3p5", attention=_step, tensors=G_PROJ)
BEAM = Family(
    model_type="beam",
    attention=_beam,
    rope=lambda config, layer: {} if config["layer_types"][layer] == "sliding_attention" else None,
    tensors=TensorLayout(tensors={"gate_proj.bias": ("gate_bias", _head_bias)}),
)
FLINT = Family(
    model_type="flint",
    attention=together(bias_flag(), head_norms(), always(sinks=True)),
    tensors=TensorLayout(tensors={"sinks": ("softmax_offset", whole)}),
    rope=lambda config, layer: {} if config["layer_types"][layer] == "sliding_attention" else None,
)

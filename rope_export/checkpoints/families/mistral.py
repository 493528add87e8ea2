"""Ministral 3: queries that grow with position. MiMo: sinks, and more key heads, on windows."""

from rope_export.checkpoints.families.base import Config, Facts, Family
from rope_export.checkpoints.families.reading import all_slide, biases
from rope_export.checkpoints.layout import TensorLayout, whole
from rope_export.spec import PositionScale


def _grown(config: Config, layer: int) -> Facts:
    parameters = config.get("rope_parameters") or {}
    beta = parameters.get("llama_4_scaling_beta")
    length = parameters.get("original_max_position_embeddings")
    if beta is None or length is None:
        return {}
    return {"position_scale": PositionScale(beta=float(beta), length=float(length))}


def _mimo(config: Config, layer: int) -> Facts:
    kinds, kv_heads = config.get("layer_types"), config["num_key_value_heads"]
    factor = config.get("attention_value_scale")
    slides = kinds is not None and kinds[layer] == "sliding_attention"
    return biases("qkv", config.flag("attention_bias")) | {
        "kv_heads": 2 * kv_heads if slides else kv_heads,
        "value_dim": config["v_head_dim"],
        "value_scale": 1.0 if factor is None else float(factor),
        "sinks": slides,
    }


MINISTRAL3 = Family(
    model_type="ministral3",
    attention=_grown,
    kinds=all_slide,
    rope=lambda config, layer: {"llama_4_scaling_beta": None},
)
MIMO = Family(
    model_type="mimo_v2_flash",
    attention=_mimo,
    tensors=TensorLayout(tensors={"sinks": ("attention_sink_bias", whole)}),
)

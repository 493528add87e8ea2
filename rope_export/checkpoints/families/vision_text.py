"""Text decoders that see images: positions of time, height and width."""

import dataclasses

from rope_export.checkpoints.families.base import Config, Facts, Family
from rope_export.checkpoints.families.reading import (
    all_full,
    always,
    bias_flag,
    biases,
    eps,
    head_norms,
    no_cache_window,
    qk_norms,
    sections,
    switched_window,
    together,
    window_from_layer,
)
from rope_export.checkpoints.layout import TensorLayout, blocks
from rope_export.errors import SpecError

QWEN2 = tuple(
    Family(
        model_type=name,
        attention=always(**biases("qkv")),
        kinds=switched_window,
        rope=sections((16, 24, 24)),
        ignored=frozenset({"position_id_per_seconds", "seconds_per_chunk"}),
    )
    for name in ("qwen2_vl_text", "qwen2_5_omni_talker", "qwen2_5_omni_text", "qwen2_5_vl_text")
)
QWEN3 = tuple(
    Family(
        model_type=name,
        attention=together(bias_flag(), head_norms(), no_cache_window),
        kinds=all_full,
        rope=sections((24, 20, 20), mixed=True),
    )
    for name in (
        "qwen3_omni_moe_talker_text",
        "qwen3_omni_moe_text",
        "qwen3_vl_moe_text",
        "qwen3_vl_text",
    )
)


CODE_PREDICTOR = Family(
    model_type="qwen3_omni_moe_talker_code_predictor",
    attention=together(bias_flag(), head_norms()),
    kinds=window_from_layer,
    rope=lambda config, layer: {"mrope_section": None},
)
PADDLE = Family(
    model_type="paddleocr_vl_text",
    attention=bias_flag("use_bias"),
    kinds=all_full,
    rope=sections((16, 24, 24)),
)
MINIMAX = Family(
    model_type="minimax_m3_vl_text",
    attention=head_norms(offset=1.0),
    ignored=frozenset({"index_block_size", "index_head_dim", "index_n_heads", "rotary_dim"}),
)
"""Layers of the kind "minimax_m3_sparse" attend to blocks that an indexer picks, and are refused;
the rotation's width is that of partial_rotary_factor alone."""

COSMOS = Family(
    model_type="cosmos3_edge_text",
    attention=bias_flag(),
    rope=sections((24, 20, 20), mixed=True),
    tensors=TensorLayout(
        others=(
            TensorLayout(
                modules={f"{part}_proj": f"to_{part}" for part in "qkv"} | {"o_proj": "to_out"}
            ),
        )
    ),
)


def _molmo(config: Config, layer: int) -> Facts:
    """Norms over each head, or over all of them, by qk_norm_type."""
    facts = biases("qkv", config.flag("attention_bias"))
    norm_type = config.get("qk_norm_type")
    if norm_type not in ("qwen3", "olmo"):
        raise SpecError(f"config key qk_norm_type={norm_type!r}: supported are 'qwen3' and 'olmo'.")
    return facts | qk_norms(eps(config), over="head" if norm_type == "qwen3" else "all")


def _scaled_layers(config: Config, layer: int) -> dict[str, object]:
    """rope_scaling_layers names the layers whose rotation is scaled, all of them where missing."""
    scaled_layers = config.get("rope_scaling_layers")
    if scaled_layers is None or layer in scaled_layers:
        return {}
    return {"rope_type": "default", "type": None, "factor": None, "attention_factor": None}


MOLMO_NAMES = TensorLayout(modules={"o_proj": "attn_out"}, fused=blocks("att_proj"))
"""Names in a text decoder saved by itself."""
MOLMO2 = Family(
    model_type="molmo2_text",
    attention=_molmo,
    rope=_scaled_layers,
    tensors=dataclasses.replace(
        MOLMO_NAMES,
        layers="transformer.blocks.{layer}.self_attn.",
        others=(MOLMO_NAMES,),
    ),
    ignored=frozenset({"use_qk_norm"}),
)

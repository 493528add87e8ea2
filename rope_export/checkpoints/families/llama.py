"""Llama, and the families whose attention is Llama's but for biases, norms and windows."""

from collections.abc import Mapping
from typing import Any

from rope_export.checkpoints.families.base import Config, Family
from rope_export.checkpoints.families.reading import (
    all_full,
    all_slide,
    always,
    bias_flag,
    biases,
    every_full,
    every_other_window,
    head_norms,
    no_biases,
    scale_of,
    switched_window,
    together,
    window_from_layer,
)
from rope_export.checkpoints.layout import TensorLayout, blocks
from rope_export.errors import SpecError

BIAS_EVERYWHERE = tuple(
    Family(model_type=name, attention=bias_flag())
    for name in (
        "arcee",
        "aria_text",
        "csm",
        "csm_depth_decoder_model",
        "deepseek_ocr2_text",
        "emu3_text_model",
        "higgs_audio_v2",
        "jais2",
        "llama",
        "pocket_tts",
    )
)


def _phimoe_rope(config: Config, layer: int) -> Mapping[str, Any]:
    """One factor on cos and sin, from the file, and the short factors at every length.

    Source: transformers 5.24, models/phimoe/modeling_phimoe.py: its forward computes inv_freq anew
    without a length, so that long_factor is never taken, and multiplies by short_mscale, or by
    long_mscale beyond the original length.
    """
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if parameters.get("rope_type", parameters.get("type", "default")) == "default":
        return {}
    short, long = parameters.get("short_mscale"), parameters.get("long_mscale")
    if not isinstance(short, int | float) or short != long:
        raise SpecError(
            f"config keys rope_parameters.short_mscale={short!r}, long_mscale={long!r}: supported "
            f"here: the same number in both, as in the published files."
        )
    changed = {"short_mscale": None, "long_mscale": None, "attention_factor": float(short)}
    if parameters.get("short_factor") != parameters.get("long_factor"):
        config.notes.add(
            "config key rope_parameters.long_factor: transformers 5.24 never takes it for "
            "model_type='phimoe'; the layer rotates by short_factor at every length, as there."
        )
        changed["long_factor"] = parameters["short_factor"]
    return changed


GRADIUM_NAMES = TensorLayout(fused=blocks("in_proj"))
"""Names in a decoder saved by itself. Files have pairs beside each other, and all three in one."""
GRADIUM = Family(
    model_type="gradium_phonon_tts",
    attention=no_biases,
    layout="interleaved",
    tensors=TensorLayout(
        layers="transformer.layers.{layer}.self_attn.",
        modules={"o_proj": "out_proj"},
        fused=blocks("in_proj"),
        others=(GRADIUM_NAMES,),
    ),
)

PHIMOE = Family(model_type="phimoe", attention=bias_flag(), kinds=all_slide, rope=_phimoe_rope)

NO_BIAS = (Family(model_type="mllama_text_model"),)

BLT = tuple(
    Family(
        model_type=name,
        layout="interleaved",
        kinds=all_slide,
        ignored=frozenset({"cross_attn_all_layers", "cross_attn_k", "encoder_cross_output_size"}),
    )
    for name in (
        "blt_local_encoder",
        "blt_local_decoder",
        "blt_global_transformer",
        "blt_patcher",
    )
)

WINDOW_EVERYWHERE = tuple(
    Family(model_type=name, kinds=all_slide)
    for name in ("mistral", "mixtral", "voxtral_realtime_text")
)

WINDOW_BY_LAYER = tuple(Family(model_type=name) for name in ("ministral", "cwm"))

QWEN2 = tuple(
    Family(
        model_type=name,
        attention=lambda config, layer: biases("qkv"),
        kinds=switched_window,
    )
    for name in ("qwen2",)
)

QWEN2_MOE = Family(
    model_type="qwen2_moe",
    attention=bias_flag("qkv_bias", "qkv"),
    kinds=every_other_window,
)

HEAD_NORMS = tuple(
    Family(model_type=name, attention=together(bias_flag(), head_norms()), kinds=kinds)
    for name, kinds in (
        ("qwen3", switched_window),
        ("dots1", window_from_layer),
        ("apertus", all_full),
        ("hy_v3", all_full),
    )
)

QWEN3_MOE = Family(
    model_type="qwen3_moe",
    attention=together(bias_flag(), head_norms()),
    kinds=lambda config: all_slide(config) if config.flag("use_sliding_window") else None,
)

MELLUM = Family(model_type="mellum", attention=together(bias_flag(), head_norms()))

BIAS_BUT_OUTPUT = tuple(
    Family(model_type=name, attention=bias_flag(parts="qkv")) for name in ("solar_open",)
)

USE_BIAS = Family(model_type="starcoder2", attention=bias_flag("use_bias"), kinds=all_slide)

SEED_OSS = Family(
    model_type="seed_oss",
    attention=together(bias_flag(parts="qkv"), bias_flag("attention_out_bias", "o")),
)

MULTIPLIED = tuple(
    Family(model_type=name, attention=together(bias_flag(), scale_of("attention_multiplier")))
    for name in (
        "granite",
        "granite4_vision_text",
        "granite_docling_text",
        "hyperclovax",
        "granitemoe",
        "granitemoeshared",
    )
)

BIDIRECTIONAL = tuple(
    Family(model_type=name, attention=together(bias_flag(), always(causal=False)))
    for name in ("eurobert",)
)

GPT_OSS = Family(
    model_type="gpt_oss",
    attention=together(bias_flag(), always(sinks=True)),
    kinds=every_full(2),
)

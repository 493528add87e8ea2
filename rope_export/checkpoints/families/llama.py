"""Llama, and the families whose attention is Llama's but for biases, norms and windows."""

from rope_export.checkpoints.families import Family
from rope_export.checkpoints.reading import (
    all_slide,
    always,
    bias_flag,
    biases,
    every_full,
    head_norms,
    scale_of,
    switched_window,
    together,
)

BIAS_EVERYWHERE = tuple(
    Family(model_type=name, attention=bias_flag())
    for name in (
        "arcee",
        "aria_text",
        "csm",
        "csm_depth_decoder_model",
        "deepseek_ocr2_text",
        "emu3_text_model",
        "gradium_phonon_tts",
        "higgs_audio_v2",
        "jais2",
        "llama",
        "pocket_tts",
    )
)

PHIMOE = Family(model_type="phimoe", attention=bias_flag(), kinds=all_slide)

NO_BIAS = (Family(model_type="mllama_text_model"),)

BLT = tuple(
    Family(model_type=name, layout="interleaved", kinds=all_slide)
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
    kinds=switched_window,
)

HEAD_NORMS = tuple(
    Family(model_type=name, attention=together(bias_flag(), head_norms()), kinds=switched_window)
    for name in ("qwen3", "dots1", "apertus", "hy_v3")
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

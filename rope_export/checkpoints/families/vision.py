"""Vision towers: patches rotate by row and column, every patch of an image sees every other.

Where a tower attends within windows or frames, transformers cuts the packed patches before the
attention; a spec describes what one such piece goes through.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rope_export.checkpoints.families.base import Config, Facts, Family
from rope_export.checkpoints.families.reading import (
    all_full,
    always,
    bias_flag,
    biases,
    head_norms,
    qk_norms,
    rows_and_columns,
    together,
)
from rope_export.checkpoints.layout import TensorLayout, blocks, multihead
from rope_export.errors import SpecError
from rope_export.spec import AttentionSpec, NormSpec

SEES_ALL = always(causal=False)
BIASED = always(causal=False, **biases("qkvo"))


def _head_dim(config: Config, width: str = "hidden_size") -> int:
    """Features of a head; a tower's width is that of all heads."""
    head_dim = config.get("head_dim")
    return head_dim if head_dim is not None else config[width] // config["num_attention_heads"]


def _rows_first(config: Config, layer: int) -> Mapping[str, Any]:
    return rows_and_columns(_head_dim(config))


def _columns_first(config: Config, layer: int) -> Mapping[str, Any]:
    quarter = _head_dim(config) // 4
    return {"rope_type": "axial", "pair_axes": (1,) * quarter + (0,) * quarter}


FUSED = TensorLayout(layers="blocks.{layer}.attn.", modules={"o_proj": "proj"}, fused=blocks("qkv"))
CLIP_NAMES = TensorLayout(modules={"o_proj": "out_proj"})
ELSEWHERE = frozenset({"num_position_embeddings", "position_embedding_size", "window_size"})
"""Keys about what is added to the patches, and about how they are cut into windows."""

FUSED_BIASED = tuple(
    Family(model_type=name, attention=BIASED, rope=_rows_first, tensors=FUSED, ignored=ELSEWHERE)
    for name in (
        "cohere_compass_vision",
        "ernie4_5_vl_moe_vision",
        "exaone4_5_vision",
        "qwen2_5_vl_vision",
        "qwen3_5_moe_vision",
        "qwen3_5_vision",
        "qwen3_omni_moe_vision_encoder",
        "qwen3_vl_moe_vision",
        "qwen3_vl_vision",
        "qwen4_exp_vision",
    )
)
QWEN2 = Family(
    model_type="qwen2_vl_vision",
    attention=lambda config, layer: BIASED(config, layer) | {"hidden_size": config["embed_dim"]},
    rope=lambda config, layer: rows_and_columns(_head_dim(config, "embed_dim")),
    tensors=FUSED,
)
QWEN2_5_OMNI = Family(
    model_type="qwen2_5_omni_vision_encoder",
    attention=BIASED,
    rope=_rows_first,
    tensors=TensorLayout(
        layers="blocks.{layer}.attn.",
        modules={"q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "proj"},
    ),
    ignored=ELSEWHERE,
)


def _qkv_biases(config: Config, layer: int) -> Facts:
    """attention_bias of the GLM towers is that of the fused projection, not of the output's."""
    return biases("qkv", config.flag("attention_bias"))


GLM4V = tuple(
    Family(
        model_type=name, attention=together(_qkv_biases, SEES_ALL), rope=_rows_first, tensors=FUSED
    )
    for name in ("glm4v_vision", "glm4v_moe_vision")
)
NORMED = tuple(
    Family(
        model_type=name,
        attention=together(bias_flag(), head_norms(), SEES_ALL),
        rope=_rows_first,
        tensors=FUSED,
    )
    for name in ("dots3_note_vision_encoder", "glm5_next_vision", "glm_ocr_vision")
)

CLIP = tuple(
    Family(model_type=name, attention=BIASED, rope=_rows_first, tensors=CLIP_NAMES)
    for name in ("paddleocr_vl_vision", "video_llama_3_vision")
)
STEP = Family(
    model_type="step3p5_vision",
    attention=BIASED,
    rope=_columns_first,
    layout="interleaved",
    tensors=TensorLayout(
        layers="transformer.resblocks.{layer}.attn.",
        modules={"o_proj": "out_proj"},
        tensors=multihead(),
    ),
)
INKLING = Family(
    model_type="inkling2_vision",
    attention=BIASED,
    rope=_columns_first,
    layout="interleaved",
    tensors=CLIP_NAMES,
)
MUSE = tuple(
    Family(
        model_type=name,
        attention=BIASED,
        kinds=all_full,
        rope=_rows_first,
        tensors=TensorLayout(layers="layers.{layer}.attn.", modules={"o_proj": "proj"}),
    )
    for name in ("muse_glimmer_vision", "muse_spark_vision")
)


def _alternating_axes(config: Config, layer: int) -> Mapping[str, Any]:
    """The axes of the pairs: the column and the row in alternation."""
    return {"rope_type": "axial_by_turns", "pair_axes": (1, 0) * (_head_dim(config) // 4)}


KIMI = Family(
    model_type="kimi_k25_vision",
    attention=BIASED,
    rope=_alternating_axes,
    tensors=TensorLayout(layers="layers.{layer}.attn.", modules={"o_proj": "proj"}),
)


def _volume(config: Config, layer: int) -> Mapping[str, Any]:
    """The axes of the pairs: time, row and column, a sixth of the head's features each."""
    pairs = _head_dim(config) // 6
    return {"rope_type": "volume", "pair_axes": (0,) * pairs + (1,) * pairs + (2,) * pairs}


MINIMAX = Family(
    model_type="minimax_m3_vl_vision",
    attention=BIASED,
    kinds=all_full,
    rope=_volume,
    tensors=CLIP_NAMES,
)
LFM3 = Family(
    model_type="lfm3_vl_vision",
    attention=together(head_norms("norm_eps"), SEES_ALL),
    rope=_rows_first,
    tensors=TensorLayout(
        modules={"o_proj": "out_proj", "q_norm": "q_layernorm", "k_norm": "k_layernorm"}
    ),
)
PIXTRAL = Family(
    model_type="pixtral",
    attention=SEES_ALL,
    rope=lambda config, layer: {**_rows_first(config, layer), "rope_type": "alternating"},
    tensors=TensorLayout(layers="layers.{layer}.attention."),
)
LLAMA4 = Family(
    model_type="llama4_vision_model",
    attention=BIASED,
    rope=_columns_first,
    layout="interleaved",
)
"""Positions count rows and columns from 1; the class token, which is last, has position 0."""


def _whole_pairs(tensor: Tensor, spec: AttentionSpec) -> Tensor:
    """The features of a head as first halves, then second halves of its pairs.

    Gemma's towers rotate either half of a head by itself: rows, rows, columns, columns. Queries and
    keys in another order give the same scores.
    """
    by_half = tensor.reshape(-1, 2, 2, spec.head_dim // 4, *tensor.shape[1:])
    return by_half.transpose(1, 2).reshape(tensor.shape)


def _gemma4(config: Config, layer: int) -> Facts:
    """No projection has a bias, whatever attention_bias is."""
    config.flag("attention_bias")
    if config.flag("use_clipped_linears"):
        raise SpecError(
            "config key use_clipped_linears=True: projections that clamp what goes in and what "
            "comes out are not implemented."
        )
    eps = float(config["rms_norm_eps"])
    norms = qk_norms(eps) | {"v_norm": NormSpec(eps=eps, weight=False)}
    return norms | {"causal": False, "scale": 1.0}


GEMMA4 = Family(
    model_type="gemma4_vision",
    attention=_gemma4,
    rope=_rows_first,
    tensors=TensorLayout(
        modules={f"{part}_proj": f"{part}_proj.linear" for part in "qkvo"},
        takes=dict.fromkeys(("q_proj", "k_proj", "q_norm", "k_norm"), _whole_pairs),
    ),
    ignored=ELSEWHERE,
)
"""The first of a position's axes is the column, as the processor gives them."""


def _side(config: Config, key: str) -> int:
    """A size in pixels, given for both sides or for each."""
    value = config[key]
    value = value[0] if isinstance(value, list | tuple) and value else value
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise SpecError(f"config key {key}={config[key]!r}: it must be a positive whole number.")
    return value


def _sam3(config: Config, layer: int) -> Mapping[str, Any]:
    """Layers that see the whole image squeeze it into the positions of one window. The first axis
    is the column."""
    window = grid = _side(config, "window_size")
    if layer in config["global_attn_indexes"]:
        grid = _side(config, "image_size") // _side(config, "patch_size")
    return {**_rows_first(config, layer), "rope_type": "spaced_axial", "spacing": window / grid}


SAM3 = Family(
    model_type="sam3_vit_model",
    attention=BIASED,
    rope=_sam3,
    layout="interleaved",
    tensors=TensorLayout(layers="layers.{layer}.attention."),
    defaults={"image_size": 1008, "patch_size": 14, "global_attn_indexes": [7, 15, 23, 31]},
)

REFUSED = tuple(
    Family(model_type=name, missing=missing)
    for name, missing in {
        "mlcd_vision_model": "a class token that rotates by learned angles",
    }.items()
)

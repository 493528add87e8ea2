"""Encoders: every token sees every other, some within a window on both sides."""

from collections.abc import Mapping
from typing import Any

from rope_export.checkpoints.families.base import Config, Facts, Family
from rope_export.checkpoints.families.reading import (
    Kinds,
    Reader,
    always,
    bias_flag,
    biases,
    every_full,
    head_norms,
    qk_norms,
    together,
)
from rope_export.checkpoints.layout import COMMON_IGNORED, TensorLayout, blocks
from rope_export.errors import SpecError
from rope_export.spec import NormSpec

BERT_NAMES = {
    "q_proj": "self.query",
    "k_proj": "self.key",
    "v_proj": "self.value",
    "o_proj": "output.dense",
}


def reaching(kinds: Kinds) -> Reader:
    """Layers that slide see `sliding_window` slots to either side."""

    def read(config: Config, layer: int) -> Facts:
        layer_types = kinds(config)
        config.get("sliding_window")
        if not layer_types or layer_types[layer] != "sliding_attention":
            return {"causal": False}
        reach = config.whole("sliding_window")
        return {"causal": False, "window": reach + 1, "window_after": reach}

    return read


def _modernbert_kinds(config: Config) -> list[str] | None:
    """Every third layer sees everything, the first among them."""
    return every_full(3, "global_attn_every_n_layers", first=True)(config)


def _two_bases(config: Config, layer: int) -> Mapping[str, Any]:
    """Older files have global_rope_theta and local_rope_theta."""
    if config.get("rope_scaling"):
        raise SpecError(
            f"config key rope_scaling={config['rope_scaling']!r}: supported here: null, or "
            f"rope_parameters by the kind of layer."
        )
    wide, near = config.get("global_rope_theta"), config.get("local_rope_theta")
    kinds = _modernbert_kinds(config)
    base = near if kinds and kinds[layer] == "sliding_attention" else wide
    return {} if base is None else {"rope_theta": base}


def _half_window(config: Config, layer: int) -> Facts:
    """local_attention counts both sides; sliding_window, where a file has it, one."""
    facts = biases("qkvo", config.flag("attention_bias")) | {"causal": False}
    whole, reach = config.get("local_attention"), config.get("sliding_window")
    reach = reach if reach is not None else (whole or 0) // 2
    kinds = _modernbert_kinds(config)
    if kinds and kinds[layer] == "sliding_attention":
        facts |= {"window": reach + 1, "window_after": reach}
    return facts


def _wide_where_full(config: Config, layer: int) -> Facts:
    """Layers that see everything have wider heads and fewer keys; files of transformers 5.24 have
    per_layer_config for that, others two keys of their own."""
    kinds = every_full(6)(config)
    full = kinds is not None and kinds[layer] == "full_attention"
    if config.get("per_layer_config") is not None or not full:
        return {}
    config.get("head_dim"), config.get("num_key_value_heads")  # of the layers that slide
    return {
        "head_dim": config.get("global_head_dim", 512),
        "kv_heads": config.get("num_global_key_value_heads", 1),
    }


def _rotary_only(config: Config, layer: int) -> Facts:
    if config.get("position_embedding_type", "absolute") != "rotary":
        raise SpecError(
            f"config key position_embedding_type={config.get('position_embedding_type')!r}: "
            f"this model then has no rotation; supported: 'rotary'."
        )
    return biases("qkvo") | {"causal": config.flag("is_decoder")}


def _roformer(config: Config, layer: int) -> Facts:
    if config.flag("rotary_value"):
        raise SpecError("config key rotary_value=True: values that rotate are not implemented.")
    return biases("qkvo") | {"causal": config.flag("is_decoder")}


def _unscaled(config: Config, layer: int) -> Mapping[str, Any]:
    """Refuses rope_scaling, which would also rotate whole heads instead of halves."""
    if config.get("rope_scaling"):
        raise SpecError(
            f"config key rope_scaling={config['rope_scaling']!r} is not supported here; "
            f"supported: null, or rope_parameters with partial_rotary_factor in them."
        )
    return {}


MODERNBERT = Family(
    model_type="modernbert",
    attention=_half_window,
    kinds=_modernbert_kinds,
    rope=_two_bases,
    tensors=TensorLayout(
        layers="layers.{layer}.attn.", modules={"o_proj": "Wo"}, fused=blocks("Wqkv")
    ),
    ignored=frozenset(
        {
            "deterministic_flash_attn",
            "position_embedding_type",
            "classifier_bias",
            "norm_bias",
            "decoder_bias",
        }
    ),
)
MODERNBERT_DECODER = Family(
    model_type="modernbert-decoder",
    attention=bias_flag(),
    kinds=_modernbert_kinds,
    rope=_two_bases,
    tensors=TensorLayout(layers="layers.{layer}.attn.", modules={"o_proj": "Wo"}),
    ignored=frozenset({"classifier_bias", "norm_bias", "decoder_bias", "local_attention"}),
)
ULTRABERT = Family(model_type="ultrabert", attention=together(bias_flag(), reaching(every_full(3))))
GTE = Family(
    model_type="gte",
    attention=always(causal=False, **biases("qkvo")),
    tensors=TensorLayout(layers="encoder.layer.{layer}.attention.", fused=blocks("qkv_proj")),
)
JINA = Family(
    model_type="jina_embeddings_v3",
    attention=always(causal=False, **biases("qkvo")),
    tensors=TensorLayout(
        layers="encoder.layers.{layer}.mixer.",
        modules={"o_proj": "out_proj"},
        fused=blocks("Wqkv"),
    ),
)
NOMIC = Family(
    model_type="nomic_bert",
    attention=always(causal=False),
    tensors=TensorLayout(
        layers="encoder.layers.{layer}.attn.",
        modules={"o_proj": "out_proj"},
        fused=blocks("Wqkv"),
    ),
)
ESM = Family(
    model_type="esm",
    attention=_rotary_only,
    tensors=TensorLayout(
        layers="layer.{layer}.attention.",
        own="self.",
        modules=BERT_NAMES,
        ignored=(
            *COMMON_IGNORED,
            "attention.LayerNorm.weight",
            "attention.LayerNorm.bias",
            "attention.LayerNorm.gamma",
            "attention.LayerNorm.beta",
            "rotary_embeddings.inv_freq",
        ),
        rotation="rotary_embeddings.inv_freq",
    ),
    ignored=frozenset({"is_folding_model", "esmfold_config", "layer_norm_eps"}),
)
ROFORMER = Family(
    model_type="roformer",
    attention=_roformer,
    layout="interleaved",
    tensors=TensorLayout(
        layers="layer.{layer}.attention.",
        own="self.",
        modules=BERT_NAMES,
        ignored=(*COMMON_IGNORED, "output.LayerNorm.weight", "output.LayerNorm.bias"),
        rotation="encoder.embed_positions.weight",
    ),
    ignored=frozenset({"embedding_size"}),
)
ESMC = Family(
    model_type="esmc",
    attention=together(
        bias_flag(), always(causal=False, **qk_norms(1e-5, kind="layer", over="all"))
    ),
)
PE = tuple(
    Family(
        model_type=name,
        attention=together(bias_flag(), head_norms(), always(causal=False)),
        layout="interleaved",
    )
    for name in ("pe_audio_encoder", "pe_audio_video_encoder", "pe_video_encoder")
)
LASR = Family(model_type="lasr_encoder", attention=together(bias_flag(), always(causal=False)))
GLMASR = Family(model_type="glmasr_encoder", attention=always(causal=False, **biases("qvo")))
TRANSCRIBE = tuple(
    Family(model_type=name, attention=always(causal=False, o_bias=True, **norms), rope=_unscaled)
    for name, norms in (
        (
            "nemotron3_5_transcribe_asr_audio",
            qk_norms(1e-5, kind="layer", bias=True),
        ),
        ("nemotron3_diarization_audio", {}),
    )
)
PRIVACY_FILTER = Family(
    model_type="openai_privacy_filter",
    attention=together(
        bias_flag(),
        reaching(lambda config: ["sliding_attention"] * config["num_hidden_layers"]),
        always(sinks=True),
    ),
    layout="interleaved",
)
EMBEDDING_GEMMA2 = Family(
    model_type="embedding_gemma2_text",
    attention=together(
        bias_flag(),
        head_norms(),
        lambda config, layer: {
            "v_norm": NormSpec(eps=float(config["rms_norm_eps"]), weight=False),
            "scale": 1.0,
        },
        reaching(every_full(6)),
        _wide_where_full,
    ),
    kinds=every_full(6),
)

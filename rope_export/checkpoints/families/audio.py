"""Audio, speech and other encoders and decoders that are not a language model's."""

from rope_export.checkpoints.families.base import Config, Facts, Family
from rope_export.checkpoints.families.gemma import two_bases
from rope_export.checkpoints.families.reading import (
    all_full,
    all_slide,
    always,
    bias_flag,
    biases,
    every_full,
    head_norms,
    no_cache_window,
    qk_norms,
    scale_of,
    together,
)
from rope_export.checkpoints.layout import COMMON_IGNORED, TensorLayout
from rope_export.errors import SpecError

BERT_NAMES = {
    "q_proj": "self.query",
    "k_proj": "self.key",
    "v_proj": "self.value",
    "o_proj": "output.dense",
}

MIMI = tuple(
    Family(
        model_type=name,
        attention=bias_flag(),
        kinds=all_slide,
        tensors=TensorLayout(layers=path + ".layers.{layer}.self_attn."),
        ignored=frozenset({"vector_quantization_hidden_dimension"}),
    )
    for name, path in (
        ("mimi_encoder", "encoder_transformer"),
        ("mimi_decoder", "decoder_transformer"),
        ("pocket_tts_audio_tokenizer_encoder", "encoder_transformer"),
        ("pocket_tts_audio_tokenizer_decoder", "decoder_transformer"),
    )
)


BOTH_STACKS = tuple(
    Family(
        model_type=name,
        missing="a layer of both stacks at once (give `part`=encoder or `part`=decoder)",
        towers={"encoder": f"{name}_encoder", "decoder": f"{name}_decoder"},
    )
    for name in ("mimi", "pocket_tts_audio_tokenizer")
)

MOSHI = tuple(
    Family(
        model_type=name,
        attention=no_cache_window,
        kinds=all_full,
        tensors=TensorLayout(modules={f"{part}_proj": f"{part}_proj.linear" for part in "qkvo"}),
    )
    for name in ("moshi", "kyutai_speech_to_text")
)
DIA = tuple(
    Family(
        model_type=name,
        attention=always(causal=causal, scale=1.0),
        tensors=TensorLayout(layers="layers.{layer}.self_attention."),
        ignored=frozenset(
            {
                "cross_head_dim",
                "cross_hidden_size",
                "cross_num_attention_heads",
                "cross_num_key_value_heads",
            }
        ),
    )
    for name, causal in (("dia_encoder", False), ("dia_decoder", True))
)
VOXTRAL = Family(
    model_type="voxtral_realtime_encoder", attention=always(**biases("qvo")), kinds=all_slide
)
TIMESTAMPS = Family(
    model_type="nemotron3_5_transcribe_word_timestamp",
    attention=always(causal=False, o_bias=True, **qk_norms(1e-5, kind="layer", bias=True)),
    ignored=frozenset({"residual_scale"}),
)
DOTS = Family(
    model_type="dots3_note_audio_encoder",
    attention=together(bias_flag(parts="qvo"), always(causal=False)),
    tensors=TensorLayout(modules={"o_proj": "out_proj"}),
)
MOONSHINE = tuple(
    Family(
        model_type=name,
        attention=bias_flag(parts="qkv"),
        layout="interleaved",
        tensors=TensorLayout(layers="decoder.layers.{layer}.self_attn."),
        ignored=frozenset(
            {
                "encoder_config",
                "encoder_num_attention_heads",
                "encoder_num_key_value_heads",
                "pad_head_dim_to_multiple_of",
            }
        ),
    )
    for name in ("moonshine", "moonshine_streaming")
)
"""The decoders: the config is of both stacks, and its common keys are the decoder's. Heads that are
padded with zeros give the same output."""
CODE2WAV = Family(
    model_type="qwen3_omni_moe.code2wav_config",
    attention=bias_flag(),
    kinds=all_slide,
    defaults={
        "hidden_size": 1024,
        "num_attention_heads": 16,
        "num_hidden_layers": 8,
        "num_key_value_heads": 16,
        "sliding_window": 72,
    },
    ignored=frozenset({"vector_quantization_hidden_dimension"}),
)


def _sa_prot(config: Config, layer: int) -> Facts:
    if config.get("position_embedding_type") != "rotary":
        raise SpecError(
            f"config key position_embedding_type={config.get('position_embedding_type')!r}: "
            f"this model then has no rotation; supported: 'rotary'."
        )
    return biases("qkvo") | {"causal": config.flag("is_decoder")}


SA_PROT = Family(
    model_type="evolla.protein_encoder_config",
    attention=_sa_prot,
    tensors=TensorLayout(
        layers="layer.{layer}.attention.",
        own="self.",
        modules=BERT_NAMES,
        ignored=(*COMMON_IGNORED, "attention.LayerNorm.weight", "attention.LayerNorm.bias"),
        rotation="rotary_embeddings.inv_freq",
    ),
    defaults={
        "hidden_size": 1280,
        "num_attention_heads": 20,
        "num_hidden_layers": 33,
        "position_embedding_type": "rotary",
        "rope_theta": 10_000.0,
    },
)


def _capped(config: Config, layer: int) -> Facts:
    facts = biases("qkvo", config.flag("attention_bias"))
    facts |= scale_of("query_pre_attn_scalar", -0.5)(config, layer)
    cap = config.get("attn_logit_softcapping")
    return facts | ({} if cap is None else {"softcap": float(cap)})


def _slides(config: Config, layer: int, period: int) -> bool:
    kinds = every_full(period)(config)
    return bool(kinds) and kinds is not None and kinds[layer] == "sliding_attention"


def _t5gemma(config: Config, layer: int) -> Facts:
    """The encoder and the decoder have the same model_type; is_decoder tells them apart. An
    encoder's window is what a token sees to either side."""
    causal = config.flag("is_decoder")
    facts = _capped(config, layer) | {"causal": causal}
    if _slides(config, layer, 2) and not causal:
        reach = config["sliding_window"]
        facts |= {"window": reach + 1, "window_after": reach}
    return facts


def _t5gemma2(config: Config, layer: int) -> Facts:
    """Only encoders are of this kind; their window counts both sides and the token itself."""
    facts = _capped(config, layer) | {"causal": False} | head_norms(offset=1.0)(config, layer)
    if "softcap" in facts:
        raise SpecError(
            f"config key attn_logit_softcapping={facts['softcap']}: T5Gemma 2 has the key and "
            f"does not apply it; supported: null."
        )
    if _slides(config, layer, 6):
        window = config["sliding_window"]
        facts |= {"window": (window + 1) // 2, "window_after": window // 2}
    return facts


T5GEMMA = Family(model_type="t5_gemma_module", attention=_t5gemma, kinds=every_full(2))
T5GEMMA2 = Family(
    model_type="t5gemma2_text",
    attention=_t5gemma2,
    kinds=every_full(6),
    rope=two_bases(every_full(6), 1e6),
)


IDEFICS = Family(
    model_type="idefics",
    ignored=frozenset({"cross_layer_interval", "qk_layer_norms"}),
)
"""qk_layer_norms and cross_layer_interval are about the layers that look at images."""


ROTATED_BEFORE = "relative positions, or hidden states that rotate before they are projected,"

REFUSED = tuple(
    Family(model_type=name, missing=missing)
    for name, missing in {
        "neucodec": "a rotation by the number of the head",
        "qwen2_5_omni_dit": "a rotation of the first head only",
        "seamless_m4t": ROTATED_BEFORE,
        "t5gemma2_decoder": "attention to an encoder's states and the decoder's at once",
        "wav2vec2-bert": ROTATED_BEFORE,
        "wav2vec2-conformer": ROTATED_BEFORE,
        "xcodec2": "a rotation by the number of the head",
    }.items()
)

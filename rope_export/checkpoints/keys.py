"""Which keys of a config count: those that transformers' code reads for the family, and no others.

What transformers does not read is not honoured here either; it is refused, unless it is known to
repeat what the layer's own code does anyway. Then a note names it.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from rope_export.checkpoints.families.base import Config, Family
from rope_export.checkpoints.families.tables import class_defaults, keys_read
from rope_export.errors import SpecError

TRUTH = "transformers 5.24"
"""The version that `families/reads.json` was made with."""

HARMLESS_KEYS = frozenset(
    {
        "_attn_implementation",
        "_attn_implementation_autoset",
        "attn_implementation",
        "compression_config",  # read in `unpacking`, as quantization_config is
        "dtype",  # the command's own
        "embedding_multiplier",  # outside the attention layer
        "final_logit_softcapping",
        "hidden_size",  # read, or of another part: the widths of tensors tell
        "image_size",
        "intermediate_size",
        "layer_types",  # read through the family's kinds
        "lm_head_bias",
        "logit_scale",
        "max_seq_len",  # what some call max_position_embeddings
        "model_max_length",
        "max_position_embeddings",  # no limit but for the variants that read it
        "n_ctx",
        "n_positions",
        "num_hidden_layers",
        "num_key_value_heads",
        "original_max_position_embeddings",
        "output_attentions",
        "partial_rotary_factor",
        "patch_size",
        "per_layer_config",
        "quantization_config",
        "residual_multiplier",
        "rope_parameters",
        "rope_scaling",
        "rope_theta",
        "scale_depth",
        "scale_emb",
        "scale_embedding",
    }
)
"""Keys that do not bear on the layer's output, or that are read where they do."""
ELSEWHERE = re.compile(
    "^activation_|^aligner|altup|duration|flow_head|^block_|^conv|cross_attention|dropout|embed(ding)?_(scal|mult)|expert|^final_|^linear_"
    "|linear_attn|full_attn_(alpha|beta)|^output_mult|_init|prediction_head|expert|^lm_head|^logits_scaling|mamba|^mlp|moe|mtp|router|"
    "^rout(e|ed)_scal|ssm|^tie_|token_id|token_index|vocab"
)
"""Parts of keys that name another part of the model."""
SUSPICIOUS = re.compile(
    "alibi|attention|attn|bias|bidirectional|chunk|clip|cross|head|kv|layer_types|lora|mscale|"
    "multiplier|nope|pattern|position|qk|quantization|query|rope|rotary|scal|sink|softcap|window"
)
ALWAYS = frozenset({"model_type", "num_hidden_layers", "per_layer_config"})
ALWAYS |= {"compression_config", "quantization_config"}
ALWAYS |= {"num_blocks"}  # of EoMT: its outer model reads it, to tell the layers apart
ROPE = frozenset(
    {
        "max_position_embeddings",
        "original_max_position_embeddings",
        "partial_rotary_factor",
        "rope_parameters",
        "rope_scaling",
        "rope_theta",
    }
)
"""Keys that every config class of transformers with rope_parameters reads."""

Accepts = Callable[[Any, Mapping[str, Any]], bool]


def _one_of(*values: Any) -> Accepts:
    return lambda value, facts: value in values


def _same_as(key: str) -> Accepts:
    return lambda value, facts: value == facts.get(key)


def _sum_of(*keys: str) -> Accepts:
    return lambda value, facts: value == sum(facts.get(key) or 0 for key in keys)


def _anything(value: Any, facts: Mapping[str, Any]) -> bool:
    return True


def _theta(value: Any, facts: Mapping[str, Any]) -> bool:
    rope = facts.get("rope_parameters") or facts.get("rope_scaling") or {}
    return bool(value == rope.get("rope_theta", facts.get("rope_theta")))


KNOWN: dict[str, tuple[Accepts, str]] = {
    "attention_softmax_in_fp32": (_one_of(True), "its softmax is in float32 anyway"),
    "attn_pdrop": (_anything, "dropout is for training"),
    "causal": (_one_of(False), "its code sees both sides anyway"),
    "dual_chunk_attention_config": (_anything, "its attention is whole at every length"),
    "full_attn_mod": (_one_of(1), "every layer is alike anyway"),
    "fused_bias_fc": (_anything, "it names a kernel"),
    "max_window_layers": (_anything, "no layer has a window by it"),
    "n_head": (_same_as("num_attention_heads"), ""),
    "n_embd": (_same_as("hidden_size"), ""),
    "num_heads": (_same_as("num_attention_heads"), ""),
    "n_layer": (_same_as("num_hidden_layers"), ""),
    "position_embedding_type": (
        _one_of("rope", "rope_gptj", "rope_gpt_neox", "rotary"),
        "its code rotates anyway",
    ),
    "max_trained_positions": (_anything, "its code rotates at every position"),
    "qk_head_dim": (_sum_of("qk_nope_head_dim", "qk_rope_head_dim"), ""),
    "rotary": (_one_of(True), "its code rotates anyway"),
    "rotary_emb_base": (_theta, ""),
    "rotary_emb_fraction": (_one_of(1, 1.0), "its code rotates whole heads anyway"),
    "rotary_pct": (_one_of(1, 1.0), "its code rotates whole heads anyway"),
    "scale_attention_softmax_in_fp32": (_one_of(True), "its softmax is in float32 anyway"),
    "scale_attn_weights": (_one_of(True), "its code scales the scores anyway"),
    "sliding_window_size": (_same_as("sliding_window"), ""),
    "use_flash_attn": (_anything, "it names a kernel"),
    "use_sliding_window": (_one_of(False), "no layer has a window by it"),
}
"""Keys of published files that transformers' code does not read, the values with which leaving
them unread is right, and why, unless they only repeat another key."""
KNOWN_ROPE = {
    "attn_factor": "it takes attention_factor, and without it its own for the factor",
    "finetuned": "it says how the model was trained",
}
"""Rope parameters of published files that transformers' code does not read, and why leaving them
unread is right."""


def short(value: Any) -> str:
    """A value as an error shows it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def is_off(value: Any) -> bool:
    """Whether a key with this value means the same as a missing key."""
    return value in (None, False, 0, "", [], {})


def unread(model_type: str, file_keys: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a file that transformers' code does not read for the family, where their value
    is not the config class's own.

    file_keys: the file's keys under their common names.
    """
    reads = keys_read(model_type)
    if reads is None:
        return {}
    defaults = class_defaults().get(model_type, {})
    read_keys = {*reads["attention"], *reads["around"], *ALWAYS}
    read_keys |= ROPE if "rope_parameters" in read_keys else set()
    return {
        key: value
        for key, value in file_keys.items()
        if key not in read_keys and not key.startswith("_") and defaults.get(key, ...) != value
    }


def notes(unread_keys: Mapping[str, Any], facts: Config, kind: Family) -> list[str]:
    """Notes for the user on keys that transformers does not read, a sentence each.

    unread_keys: keys that transformers does not read. facts: the others.
    Raises: SpecError for one that may be meant to change the attention.
    """
    sentences, model_type = [], kind.model_type
    for key, value in sorted(unread_keys.items()):
        if key in KNOWN and KNOWN[key][0](value, facts.facts):
            if KNOWN[key][1] and not is_off(value):
                sentences.append(
                    f"config key {key}={short(value)}: {TRUTH} does not read it for model_type="
                    f"{model_type!r}; {KNOWN[key][1]}."
                )
            continue
        if key == "is_causal" and not value:
            raise _ignored(key, value, model_type)
        if key in HARMLESS_KEYS | kind.ignored or is_off(value) or ELSEWHERE.search(key):
            continue
        if SUSPICIOUS.search(key) or key in KNOWN:
            raise _ignored(key, value, model_type)
    return sentences


def rope_notes(parameters: Mapping[str, Any], rope_type: str) -> list[str]:
    """Notes for the user on rope parameters that no code of the variant reads, a sentence each.

    Raises: SpecError for one that may be meant to change the rotation.
    """
    sentences = []
    for key, value in sorted(parameters.items()):
        if value is None:
            continue
        if key not in KNOWN_ROPE:
            raise SpecError(
                f"config key rope_parameters.{key}={short(value)} is not supported for rope_type="
                f"{rope_type!r}: it may change the rotation. Remove it to export what the other "
                f"parameters say."
            )
        sentences.append(
            f"config key rope_parameters.{key}={short(value)}: {TRUTH} does not read it for "
            f"rope_type={rope_type!r}; {KNOWN_ROPE[key]}."
        )
    return sentences


def _ignored(key: str, value: Any, model_type: str) -> SpecError:
    return SpecError(
        f"config key {key}={short(value)}: {TRUTH} does not read it for model_type="
        f"{model_type!r}, though it may be meant to change the attention. Remove it to export "
        f"what transformers computes, or name the model_type whose code reads it."
    )


def refuse_changing(changing: Mapping[str, Any], model_type: str) -> None:
    """Refuses keys that transformers does not read for this family, and that would change the layer
    if they were read as in other families.

    Raises: SpecError naming the first.
    """
    for key, value in sorted(changing.items()):
        raise _ignored(key, value, model_type)


def refuse_unread(facts: Config, kind: Family) -> None:
    """Refuses keys that may change the attention and that no code here read: those that
    transformers' attention reads, or whose names suggest it.

    Raises: SpecError naming the first.
    """
    attention_keys = (keys_read(kind.model_type) or {"attention": {}})["attention"]
    harmless = HARMLESS_KEYS | {facts.names.get(key, key) for key in HARMLESS_KEYS} | kind.ignored
    for key in sorted(set(facts) - facts.read - harmless):
        value = facts.facts[key]
        if key.startswith("_") or is_off(value) or ELSEWHERE.search(key):
            continue
        inner = isinstance(value, dict)  # of another part of the model
        read = not inner and attention_keys.get(key, "?") not in ("?", value)
        if read or SUSPICIOUS.search(key):
            raise SpecError(
                f"config key {key}={short(value)} is not supported for model_type="
                f"{kind.model_type!r}: it may change the attention and is not implemented. "
                f"docs/models.md has configs that export."
            )

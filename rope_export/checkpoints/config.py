"""From a Hugging Face config to an AttentionSpec; what is not implemented is refused by its key."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rope_export.checkpoints.families import Family, family
from rope_export.errors import CheckpointError, SpecError
from rope_export.rope import variant
from rope_export.spec import AttentionSpec, RopeSpec

COMMON_KEYS = frozenset(
    {
        "head_dim",
        "hidden_size",
        "layer_types",
        "max_window_layers",
        "num_attention_heads",
        "num_hidden_layers",
        "num_key_value_heads",
        "partial_rotary_factor",
        "rope_parameters",
        "rope_scaling",
        "rope_theta",
        "sliding_window",
        "use_sliding_window",
    }
)
HARMLESS_KEYS = frozenset(
    {
        "attention_dropout",  # training only
        "attn_implementation",
        "_attn_implementation",
        "_attn_implementation_autoset",
        "embedding_multiplier",  # outside the attention layer
        "logits_scaling",
        "max_position_embeddings",  # no limit for the plain and linear variants
        "mlp_bias",
        "output_attentions",
        "residual_multiplier",
    }
)
SUSPICIOUS = re.compile(
    "alibi|attention|attn|bias|bidirectional|chunk|clip|cross|head|kv|layer_types|lora|mscale|"
    "multiplier|nope|pattern|position|qk|quantization|query|rope|rotary|scal|sink|softcap|window"
)
ROPE_PARAMETER_KEYS = frozenset({"rope_type", "type", "rope_theta", "partial_rotary_factor"})


def read_config(config: Any) -> dict[str, Any]:
    """The contents of a config: from a path, a folder with config.json, a dict, or a transformers
    config object.

    Raises: CheckpointError if there is no such file or it is not a JSON object.
    """
    if isinstance(config, Mapping):
        return dict(config)
    if hasattr(config, "to_dict"):
        return dict(config.to_dict())
    path = Path(config)
    path = path / "config.json" if path.is_dir() else path
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: is not JSON ({error}).") from error
    if not isinstance(facts, dict):
        raise CheckpointError(f"{path}: a config is a JSON object, this is not one.")
    return facts


def read_spec(config: Any, *, layer: int = 0) -> AttentionSpec:
    """The facts of one layer. See `AttentionSpec.from_hf`."""
    facts = read_config(config)
    kind = family(facts.get("model_type"))
    facts = {**kind.defaults, **facts}
    _refuse_unknown(facts, kind)
    layers = _whole(facts, "num_hidden_layers")
    if not 0 <= layer < layers:
        raise SpecError(f"layer={layer}: the model has {layers} layers, 0 to {layers - 1}.")
    _refuse_windows(facts, layer)
    heads, hidden_size = _whole(facts, "num_attention_heads"), _whole(facts, "hidden_size")
    if facts.get("head_dim") is None and hidden_size % heads:
        raise SpecError(
            f"hidden_size={hidden_size}, num_attention_heads={heads}: without head_dim, "
            f"hidden_size must be a multiple of num_attention_heads."
        )
    head_dim = hidden_size // heads if facts.get("head_dim") is None else _whole(facts, "head_dim")
    kv_heads = facts.get("num_key_value_heads")
    q_bias, k_bias, v_bias, o_bias = kind.biases(facts)
    return AttentionSpec(
        hidden_size=hidden_size,
        heads=heads,
        kv_heads=heads if kv_heads is None else _whole(facts, "num_key_value_heads"),
        head_dim=head_dim,
        rope=_rope(facts, kind, head_dim),
        q_bias=q_bias,
        k_bias=k_bias,
        v_bias=v_bias,
        o_bias=o_bias,
        scale=kind.scale(facts),
    )


def _whole(facts: Mapping[str, Any], key: str) -> int:
    value = facts.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise SpecError(f"config key {key}={value!r}: it must be a positive whole number.")
    return value


def _refuse_unknown(facts: Mapping[str, Any], kind: Family) -> None:
    """Refuse a key that may change the attention and that nobody here reads: never ignore it."""
    read = COMMON_KEYS | HARMLESS_KEYS | kind.keys
    for key in sorted(facts.keys() - read):
        if SUSPICIOUS.search(key) and facts[key] not in (None, False, 0, "", [], {}):
            raise SpecError(
                f"config key {key}={facts[key]!r} is not supported for model_type="
                f"{kind.model_type!r}: it may change the attention and is not implemented."
            )


def _refuse_windows(facts: Mapping[str, Any], layer: int) -> None:
    types = facts.get("layer_types")
    if types is not None:
        if not isinstance(types, list) or layer >= len(types):
            raise SpecError(f"config key layer_types={types!r}: it must name every layer's kind.")
        if types[layer] != "full_attention":
            raise SpecError(
                f"config key layer_types[{layer}]={types[layer]!r} is not implemented; "
                f"supported: 'full_attention'."
            )
        return
    window = facts.get("sliding_window")
    used = facts.get("use_sliding_window", True)
    first = facts.get("max_window_layers", 0) if "use_sliding_window" in facts else 0
    if window is not None and used and layer >= first:
        raise SpecError(
            f"config key sliding_window={window} (the family's default where the file has none): "
            f"sliding windows are not implemented; supported: null."
        )


def _rope(facts: Mapping[str, Any], kind: Family, head_dim: int) -> RopeSpec:
    """The rotation, from `rope_parameters` or the older `rope_theta` and `rope_scaling`."""
    new, old = facts.get("rope_parameters"), facts.get("rope_scaling")
    for key, value in (("rope_parameters", new), ("rope_scaling", old)):
        if value is not None and not isinstance(value, dict):
            raise SpecError(f"config key {key}={value!r}: it must be an object or null.")
    if new and old and new != old:
        raise SpecError("config keys rope_parameters and rope_scaling contradict each other.")
    given = dict(new or old or {})
    outer = {key: facts[key] for key in ("rope_theta", "partial_rotary_factor") if key in facts}
    rope_type = given.get("rope_type", given.get("type", "default"))
    if not isinstance(rope_type, str):
        raise SpecError(f"config key rope_type={rope_type!r}: it must be a name.")
    cls = variant(rope_type)
    unread = given.keys() - ROPE_PARAMETER_KEYS - cls.hf_keys.keys()
    for key in sorted(unread):
        if given[key] is not None:
            raise SpecError(
                f"config key rope_parameters.{key}={given[key]!r} is not supported for "
                f"rope_type={rope_type!r}."
            )
    parameters = {name: _number(given, key) for key, name in cls.hf_keys.items()}
    merged = {"rope_theta": 10_000.0, "partial_rotary_factor": 1.0, **outer, **given}
    return cls(
        rotary_dim=int(head_dim * _number(merged, "partial_rotary_factor")),
        theta=_number(merged, "rope_theta"),
        layout=kind.layout,
        **parameters,
    )


def _number(given: Mapping[str, Any], key: str) -> float:
    value = given.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise SpecError(f"config key {key}={value!r}: this rope_type needs it to be a number.")
    return float(value)

"""From a Hugging Face config to an AttentionSpec; what is not implemented is refused by its key."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rope_export.checkpoints.families import (
    Config,
    Facts,
    Family,
    class_defaults,
    family,
)
from rope_export.checkpoints.layout import TensorLayout
from rope_export.errors import CheckpointError, SpecError
from rope_export.rope import not_published, number, variant
from rope_export.spec import AttentionSpec, RopeSpec

HARMLESS_KEYS = frozenset(
    {
        "_attn_implementation",
        "_attn_implementation_autoset",
        "attn_implementation",
        "compression_config",  # read in `unpacking`, as quantization_config is
        "embedding_multiplier",  # outside the attention layer
        "final_logit_softcapping",
        "layer_types",  # read through the family's kinds
        "lm_head_bias",
        "logit_scale",
        "max_position_embeddings",  # no limit but for the variants that read it
        "n_ctx",
        "n_positions",
        "num_key_value_heads",
        "original_max_position_embeddings",
        "output_attentions",
        "partial_rotary_factor",
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
ROPE_PARAMETER_KEYS = frozenset({"rope_type", "type", "rope_theta", "partial_rotary_factor"})
ALSO_THERE = {"max_position_embeddings", "original_max_position_embeddings"}
"""Lengths that some configs repeat for variants that do not look at them."""
INNER = ("text_config", "llm_config", "language_config")
"""Where a model of several towers keeps its text decoder."""


@dataclass(frozen=True, kw_only=True)
class Read:
    """A config as read: the family, its keys under common names, and the part of the model."""

    kind: Family
    facts: Config
    part: str | None

    def layout(self, layer: int) -> TensorLayout:
        """Names of the layer's tensors in a checkpoint."""
        tensors = self.kind.tensors
        return tensors if isinstance(tensors, TensorLayout) else tensors(self.facts, layer)


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


def select(config: Any, part: str | None = None) -> Read:
    """The part of a config that describes the layer, and its family.

    part: key of an inner config; without, the text decoder of a model of several towers.
    Raises: SpecError for a part or a model_type that is not there.
    """
    facts = read_config(config)
    if part is None:
        part = next((key for key in INNER if isinstance(facts.get(key), dict)), None)
    if part is not None:
        facts = _inner(facts, part)
    model_type = facts.get("model_type")
    defaults = dict(class_defaults().get(str(model_type), {}))
    inner = defaults.pop("inner", {})
    decoder = next((key for key in INNER if key in inner), None)
    if part is None and decoder is not None:
        # An older config.json with the decoder's keys beside those of the towers.
        facts, part = {**facts, "model_type": inner[decoder]}, decoder
        defaults = dict(class_defaults().get(inner[decoder], {}))
    kind = family(facts.get("model_type"))
    if kind.missing is not None:
        raise SpecError(
            f"model_type={kind.model_type!r} is not supported: {kind.missing} is not implemented."
        )
    names = defaults.pop("attribute_map", {})
    for fact in ("inner", "partial", "mixed"):
        defaults.pop(fact, None)
    plain = not (facts.get("rope_parameters") or facts.get("rope_scaling"))
    if defaults.pop("keeps_theta", False) and plain and facts.get("rope_theta"):
        raise SpecError(
            f"config key rope_theta={facts['rope_theta']}: transformers does not look at it for "
            f"model_type={kind.model_type!r} without rope_parameters; give it inside of them."
        )
    rope = defaults.get("rope_parameters")
    if isinstance(rope, dict):  # what an older file gives beside them comes first
        given = {key for key in ("rope_theta", "partial_rotary_factor") if facts.get(key)}
        by_kind = any(isinstance(value, dict) for value in rope.values())
        defaults["rope_parameters"] = {
            k: v for k, v in rope.items() if k not in given and not (by_kind and given)
        }
    if facts.get("rope_parameters") or facts.get("rope_scaling"):
        defaults.pop("rope_parameters", None)
    merged = {**defaults, **kind.defaults}
    merged |= {names.get(key, key): value for key, value in facts.items()}
    return Read(kind=kind, facts=Config(merged, names), part=part)


def _inner(facts: Mapping[str, Any], part: str) -> dict[str, Any]:
    """The inner config at a dotted path.

    An inner config without a model_type has that of the class the outer family has there.
    """
    outer = str(facts.get("model_type"))
    inner: Any = facts
    known = ""
    for key in part.split("."):
        known = class_defaults().get(outer, {}).get("inner", {}).get(key, f"{outer}.{key}")
        inner = inner.get(key) if isinstance(inner, Mapping) else None
        if not isinstance(inner, Mapping):
            there = sorted(k for k, v in facts.items() if isinstance(v, dict))
            raise SpecError(f"part={part!r}: the config has no such part; it has {there}.")
        outer = inner.get("model_type") or known
    return {**inner, "model_type": outer}


def read_spec(config: Any, *, layer: int = 0, part: str | None = None) -> AttentionSpec:
    """The facts of one layer. See `AttentionSpec.from_hf`."""
    return spec_of(select(config, part), layer)


def spec_of(read: Read, layer: int) -> AttentionSpec:
    """The facts of one layer.

    Raises: SpecError naming the key that is missing, wrong or not supported.
    """
    try:
        return _spec(read, layer)
    except KeyError as error:
        raise SpecError(
            f"config key {error.args[0]} is missing: model_type={read.kind.model_type!r} needs it."
        ) from error


def _spec(read: Read, layer: int) -> AttentionSpec:
    kind, facts = read.kind, read.facts
    layers = kind.depth(facts) if kind.depth else facts.whole("num_hidden_layers")
    if not 0 <= layer < layers:
        raise SpecError(f"layer={layer}: the model has {layers} layers, 0 to {layers - 1}.")
    own = (facts.get("per_layer_config") or {}).get(str(layer))
    if own:
        facts = Config({**facts.facts, **own}, facts.names)
    layer_type = _layer_type(kind, facts, layer, layers)
    given = kind.attention(facts, layer)
    heads = facts.whole("num_attention_heads")
    heads = given.pop("heads", None) or heads
    hidden_size = given.pop("hidden_size", None) or facts.whole("hidden_size")
    kv_heads = given.pop("kv_heads", None)
    if kv_heads is None:
        there = facts.get("num_key_value_heads") is not None
        kv_heads = facts.whole("num_key_value_heads") if there else heads
    head_dim = given.pop("head_dim", None) or _head_dim(facts, hidden_size, heads)
    latent = given.get("latent")
    turning = head_dim if latent is None else latent.rope_dim
    rope = _rope(facts, kind, layer, layer_type, turning, latent is not None)
    window = _window(facts, layer, layer_type, given)
    spec = AttentionSpec(
        hidden_size=hidden_size,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        rope=rope,
        **{**window, **given},
    )
    _refuse_unread(facts, kind)
    return spec


def _head_dim(facts: Config, hidden_size: int, heads: int) -> int:
    if facts.get("head_dim") is not None:
        return facts.whole("head_dim")
    if hidden_size % heads:
        raise SpecError(
            f"hidden_size={hidden_size}, num_attention_heads={heads}: without head_dim, "
            f"hidden_size must be a multiple of num_attention_heads."
        )
    return hidden_size // heads


def _refuse_unread(facts: Config, kind: Family) -> None:
    """Refuse a key that may change the attention and that nobody here read: never ignore it."""
    for key in sorted(set(facts) - facts.read - HARMLESS_KEYS - kind.ignored):
        if key.startswith("_"):  # not a part of the model: where the file comes from
            continue
        off = facts.facts[key] in (None, False, 0, "", [], {})
        if SUSPICIOUS.search(key) and not ELSEWHERE.search(key) and not off:
            raise SpecError(
                f"config key {key}={facts[key]!r} is not supported for model_type="
                f"{kind.model_type!r}: it may change the attention and is not implemented."
            )


KINDS = ("full_attention", "sliding_attention", "chunked_attention")


def _layer_type(kind: Family, facts: Config, layer: int, layers: int) -> str:
    types = kind.kinds(facts)
    if types is None and class_defaults().get(kind.model_type, {}).get("mixed"):
        raise SpecError(
            f"config key layer_types=None: layers of model_type={kind.model_type!r} differ, so it "
            f"must name every layer's kind."
        )
    if types is None:
        return "full_attention"
    facts.get("sliding_window"), facts.get("use_sliding_window"), facts.get("max_window_layers")
    if not isinstance(types, list) or len(types) < layers:
        raise SpecError(f"config key layer_types={types!r}: it must name every layer's kind.")
    if types[layer] not in KINDS:
        raise SpecError(
            f"config key layer_types[{layer}]={types[layer]!r} is not implemented; "
            f"supported: {', '.join(map(repr, KINDS))}."
        )
    return types[layer]


def _window(facts: Config, layer: int, layer_type: str, given: Mapping[str, Any]) -> Facts:
    """The window of a layer that slides, unless the family has said what it sees."""
    if facts.get("use_sliding_window") is False:
        facts.get("sliding_window"), facts.get("max_window_layers")
    if layer_type != "sliding_attention" or "window" in given:
        return {}
    if facts.get("sliding_window") is None:
        raise SpecError(
            f"config key layer_types[{layer}]='sliding_attention', but sliding_window is missing: "
            f"a layer that slides needs it."
        )
    return {"window": facts.whole("sliding_window")}


def _rope(
    facts: Config, kind: Family, layer: int, layer_type: str, head_dim: int, latent: bool
) -> RopeSpec | None:
    """The rotation, from `rope_parameters` or the older `rope_theta` and `rope_scaling`.

    head_dim: the features that may turn; in latent attention all of them do.
    """
    changed = kind.rope(facts, layer)
    if changed is None:
        return None
    given = _rope_parameters(facts, layer_type)
    if given is None:
        return None
    outer = {
        key: facts[key]
        for key in ("rope_theta", "partial_rotary_factor")
        if facts.get(key) is not None
    }
    given = {**outer, **given, **changed}
    rope_type = given.get("rope_type", given.get("type", "default"))
    if not isinstance(rope_type, str):
        raise SpecError(f"config key rope_type={rope_type!r}: it must be a name.")
    cls = variant(rope_type)
    if not cls.published and "rope_type" not in changed:
        raise not_published(rope_type)
    part = number(given, "partial_rotary_factor", 1.0)
    partial = cls.turns_part or _turns_part(kind.model_type) or "partial_rotary_factor" in changed
    if part != 1.0 and not partial and not latent:
        raise SpecError(
            f"config key partial_rotary_factor={part}: the code of model_type="
            f"{kind.model_type!r} turns whole heads; supported: 1.0."
        )
    pair_axes = given.pop("pair_axes", ())
    layout = kind.layout if isinstance(kind.layout, str) else kind.layout(facts)
    fields = {"layout": layout, "clockwise": given.pop("clockwise", False)}
    unread = given.keys() - ROPE_PARAMETER_KEYS - ALSO_THERE - cls.hf_keys.keys()
    for key in sorted(unread):
        if given[key] is not None:
            raise SpecError(
                f"config key rope_parameters.{key}={given[key]!r} is not supported for "
                f"rope_type={rope_type!r}."
            )
    return cls.read(
        given,
        facts,
        head_dim=head_dim,
        rotary_dim=head_dim if latent else int(head_dim * part),
        theta=number(given, "rope_theta", 10_000.0),
        pair_axes=pair_axes,
        **fields,
    )


def _rope_parameters(facts: Config, layer_type: str) -> dict[str, Any] | None:
    """The rope parameters of the layer's kind; none where the config has null for that kind."""
    new, old = facts.get("rope_parameters"), facts.get("rope_scaling")
    for key, value in (("rope_parameters", new), ("rope_scaling", old)):
        if value is not None and not isinstance(value, dict):
            raise SpecError(f"config key {key}={value!r}: it must be an object or null.")
    if new and old and new != old:
        raise SpecError("config keys rope_parameters and rope_scaling contradict each other.")
    given = dict(new or old or {})
    if not any(isinstance(value, dict) for value in given.values()):
        # Beside the parameters, the original length counts more than among them.
        outer = facts.get("original_max_position_embeddings")
        return given if outer is None else {**given, "original_max_position_embeddings": outer}
    if layer_type not in given:
        raise SpecError(
            f"config key rope_parameters={given!r}: it has none for a {layer_type!r} layer."
        )
    own = given[layer_type]
    if own is not None and own.get("truncate") is False:
        raise SpecError(
            f"config key rope_parameters.{layer_type}.truncate=False: transformers looks for it "
            f"outside of the layer kinds only, and truncates; supported there: true."
        )
    return None if own is None else dict(own)


def _turns_part(model_type: str) -> bool:
    """Whether the family's code looks at partial_rotary_factor; families that are not
    transformers' are taken at their config's word."""
    return bool(class_defaults().get(model_type, {"partial": True}).get("partial"))

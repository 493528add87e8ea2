"""From a Hugging Face config to an AttentionSpec; what is not implemented is refused by its key."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rope_export.checkpoints import keys
from rope_export.checkpoints.families.base import Config, Facts, Family
from rope_export.checkpoints.families.known import family, towers_of
from rope_export.checkpoints.families.tables import class_defaults, keys_read
from rope_export.checkpoints.layout import TensorLayout
from rope_export.checkpoints.rotation import read_rotation
from rope_export.errors import CheckpointError, SpecError
from rope_export.spec import AttentionSpec

INNER = ("text_config", "llm_config", "language_config")
"""Config keys under which a model of several towers keeps its text decoder."""


@dataclass(frozen=True, kw_only=True)
class Read:
    """A config as read: the family, its keys under common names, and the part of the model.

    unread: keys of the file that transformers' code does not read for the family; not in facts.
    """

    kind: Family
    facts: Config
    part: str | None
    unread: Mapping[str, Any] = field(default_factory=dict)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of the keys, after a spec was read from them."""
        return tuple(sorted(self.facts.notes))

    def anew(self) -> "Read":
        """The same config, of which nothing has been read or noted yet."""
        return replace(self, facts=Config(self.facts.facts, self.facts.names))

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
    for key in ("inner", "partial", "mixed"):
        defaults.pop(key, None)
    no_rope_parameters = not (facts.get("rope_parameters") or facts.get("rope_scaling"))
    if defaults.pop("keeps_theta", False) and no_rope_parameters and facts.get("rope_theta"):
        raise SpecError(
            f"config key rope_theta={facts['rope_theta']}: transformers does not look at it for "
            f"model_type={kind.model_type!r} without rope_parameters; give it inside of them."
        )
    rope = defaults.get("rope_parameters")
    if isinstance(rope, dict):  # what an older file gives beside them comes first
        outer_keys = {key for key in ("rope_theta", "partial_rotary_factor") if facts.get(key)}
        by_kind = any(isinstance(value, dict) for value in rope.values())
        defaults["rope_parameters"] = {
            key: value
            for key, value in rope.items()
            if key not in outer_keys and not (by_kind and outer_keys)
        }
    if facts.get("rope_parameters") or facts.get("rope_scaling"):
        defaults.pop("rope_parameters", None)
    merged = {**defaults, **kind.defaults}
    file_keys = {names.get(key, key): value for key, value in facts.items()}
    unread = keys.unread(kind.model_type, file_keys)
    merged |= {key: value for key, value in file_keys.items() if key not in unread}
    return Read(kind=kind, facts=Config(merged, names), part=part, unread=unread)


def _inner(facts: Mapping[str, Any], part: str) -> dict[str, Any]:
    """The inner config at a dotted path.

    An inner config without a model_type has that of the class that the outer family has there.
    """
    outer_type = str(facts.get("model_type"))
    inner: Any = facts
    class_type = ""
    for key in part.split("."):
        class_type = (
            class_defaults().get(outer_type, {}).get("inner", {}).get(key, f"{outer_type}.{key}")
        )
        towers = towers_of(outer_type)
        if isinstance(inner, Mapping) and key in towers and key not in inner:
            inner, outer_type = {**inner, "model_type": towers[key]}, towers[key]
            continue
        inner = inner.get(key) if isinstance(inner, Mapping) else None
        if not isinstance(inner, Mapping):
            parts = [
                *sorted(key for key, value in facts.items() if isinstance(value, dict)),
                *towers,
            ]
            raise SpecError(f"part={part!r}: the config has no such part; it has {parts}.")
        outer_type = inner.get("model_type") or class_type
    return {**inner, "model_type": outer_type}


def read_spec(config: Any, *, layer: int = 0, part: str | None = None) -> AttentionSpec:
    """The facts of one layer. See `AttentionSpec.from_hf`."""
    return spec_of(select(config, part), layer)


def spec_of(read: Read, layer: int) -> AttentionSpec:
    """The facts of one layer, from the part of a config that `select` chose.

    Raises: SpecError naming the key that is missing, wrong or not supported.
    """
    try:
        spec = _spec(read.kind, read.facts, layer)
    except KeyError as error:
        raise _missing(read, error) from error
    keys.refuse_changing(_changing(read, layer, spec), read.kind.model_type)
    read.facts.notes.update(keys.notes(read.unread, read.facts, read.kind))
    return spec


def _missing(read: Read, error: KeyError) -> SpecError:
    """The error for a key that the config lacks."""
    return SpecError(
        f"config key {error.args[0]} is missing: model_type={read.kind.model_type!r} needs it."
    )


def _changing(read: Read, layer: int, spec: AttentionSpec) -> dict[str, Any]:
    """The keys that transformers does not read and that would change the layer if we did."""

    def changes(unread_keys: Mapping[str, Any]) -> bool:
        facts = Config({**read.facts.facts, **unread_keys}, read.facts.names)
        try:
            return _spec(read.kind, facts, layer, strict=False) != spec
        except (SpecError, KeyError):
            return True

    if not read.unread or not changes(read.unread):
        return {}
    alone = {key: value for key, value in read.unread.items() if changes({key: value})}
    return alone or dict(read.unread)


def _spec(kind: Family, facts: Config, layer: int, strict: bool = True) -> AttentionSpec:
    """The facts of one layer, of a config whose keys are all there.

    strict: refuse keys that no code read.
    """
    layers = _depth(kind, facts)
    if not 0 <= layer < layers:
        raise SpecError(f"layer={layer}: the model has {layers} layers, 0 to {layers - 1}.")
    layer_configs = facts.get("per_layer_config") or {}
    own = (value for key, value in layer_configs.items() if key.isdigit() and int(key) == layer)
    layer_config = next(own, None)
    if layer_config:
        facts = facts.with_more(layer_config)
    layer_type = _layer_type(kind, facts, layer, layers)
    fields = kind.attention(facts, layer)
    fields |= _both_sides(facts, kind, layer_type, fields)
    heads = facts.whole("num_attention_heads")
    heads = fields.pop("heads", None) or heads
    hidden_size = fields.pop("hidden_size", None) or facts.whole("hidden_size")
    kv_heads = fields.pop("kv_heads", None)
    if kv_heads is None:
        has_kv_heads = facts.get("num_key_value_heads") is not None
        kv_heads = facts.whole("num_key_value_heads") if has_kv_heads else heads
    head_dim = fields.pop("head_dim", None) or _head_dim(facts, hidden_size, heads)
    latent = fields.get("latent")
    rotary_width = head_dim if latent is None else latent.rope_dim
    rope = read_rotation(facts, kind, layer, layer_type, rotary_width, latent is not None)
    window = _window(facts, layer, layer_type, fields)
    spec = AttentionSpec(
        hidden_size=hidden_size,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        rope=rope,
        **{**window, **fields},
    )
    if strict:
        keys.refuse_unread(facts, kind)
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


def _both_sides(facts: Config, kind: Family, layer_type: str, fields: Facts) -> Facts:
    """Fields of a spec for is_causal: where it is false or null, transformers' mask functions let
    every token see those after it, within the window on both sides; chunks stay causal.

    Source: transformers 5.24, masking_utils.py, create_causal_mask and its like.
    """
    reads = keys_read(kind.model_type) or {"attention": {}}
    if "is_causal" not in facts or "is_causal" not in reads["attention"]:
        return {}
    if facts["is_causal"] or not fields.get("causal", True) or layer_type == "chunked_attention":
        return {}
    if "window" in fields or "chunk" in fields:
        raise SpecError(
            f"config key is_causal={facts['is_causal']!r}: not implemented for the windows of "
            f"model_type={kind.model_type!r}; supported: true."
        )
    if layer_type != "sliding_attention":
        return {"causal": False}
    reach = facts.whole("sliding_window")
    return {"causal": False, "window": reach + 1, "window_after": reach}


ATTENTION_KINDS = ("full_attention", "sliding_attention", "chunked_attention")
"""Kinds of layers that attend, as transformers' layer_types name them."""


def layer_kinds(read: Read) -> tuple[str, ...]:
    """The kind of every layer: one of `ATTENTION_KINDS`, or another word for one without attention.

    Raises: SpecError for a config that does not tell.
    """
    read = read.anew()
    try:
        layers = _depth(read.kind, read.facts)
        return tuple(_layer_types(read.kind, read.facts, layers)[:layers])
    except KeyError as error:
        raise _missing(read, error) from error


def _depth(kind: Family, facts: Config) -> int:
    """How many layers the model has."""
    return kind.depth(facts) if kind.depth else facts.whole("num_hidden_layers")


def _layer_types(kind: Family, facts: Config, layers: int) -> list[str]:
    """The kind of every layer, as the family names them."""
    types = kind.kinds(facts)
    if types is None and class_defaults().get(kind.model_type, {}).get("mixed"):
        raise SpecError(
            f"config key layer_types=None: layers of model_type={kind.model_type!r} differ, so it "
            f"must name every layer's kind."
        )
    if types is None:
        return ["full_attention"] * layers
    facts.get("sliding_window"), facts.get("use_sliding_window"), facts.get("max_window_layers")
    if not isinstance(types, list) or len(types) < layers:
        raise SpecError(f"config key layer_types={types!r}: it must name every layer's kind.")
    return types


def _layer_type(kind: Family, facts: Config, layer: int, layers: int) -> str:
    """The kind of one layer.

    Raises: SpecError for one that does not attend, or attends in another way.
    """
    layer_type = _layer_types(kind, facts, layers)[layer]
    if layer_type not in ATTENTION_KINDS:
        raise SpecError(
            f"config key layer_types[{layer}]={layer_type!r} is not implemented; "
            f"supported: {', '.join(map(repr, ATTENTION_KINDS))}."
        )
    return layer_type


def _window(facts: Config, layer: int, layer_type: str, fields: Mapping[str, Any]) -> Facts:
    """The window of a layer that slides, unless the fields that the family reads set one."""
    if facts.get("use_sliding_window") is False:
        facts.get("sliding_window"), facts.get("max_window_layers")
    if layer_type != "sliding_attention" or "window" in fields:
        return {}
    if facts.get("sliding_window") is None:
        raise SpecError(
            f"config key layer_types[{layer}]='sliding_attention', but sliding_window is missing: "
            f"a layer that slides needs it."
        )
    return {"window": facts.whole("sliding_window")}

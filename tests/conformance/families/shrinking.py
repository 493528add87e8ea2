"""Tiny configurations: the defaults of a config class, shrunk key by key."""

import ast
import copy
import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from tests.conformance.families.building import set_eager
from tests.conformance.families.overrides import OVERRIDES
from tests.conformance.families.rotary_classes import modeling_modules

VOCABULARY = 128


def tiny_config_for(cls: type[PreTrainedModel], family: str) -> PreTrainedConfig:
    """The tiny configuration that a model class is built with."""
    config_class = cls.config_class
    if config_class is None:
        raise ValueError(f"{cls.__name__} names no config class")
    return tiny_config(config_class, family)


def tiny_config(
    config_class: type[PreTrainedConfig], family: str, **changes: Any
) -> PreTrainedConfig:
    """The config class's own defaults, shrunk key by key, with the family's overrides."""
    default = config_class()
    declared = {x.name: _declared_default(x) for x in dataclasses.fields(config_class) if x.init}
    overrides = {x: y for x, y in OVERRIDES.get(family, {}).items() if x in declared}
    overrides |= OVERRIDES.get(config_class.__name__, {})
    small: dict[str, Any] = {}
    for key, value in declared.items():
        resolved = value_of(default, key, value)
        if isinstance(resolved, PreTrainedConfig):
            small[key] = tiny_config(type(resolved), family)
        elif value is None and resolved is None and key in NEEDED:
            small[key] = NEEDED[key]
        elif value is not None and value is not dataclasses.MISSING:
            small[key] = shrunk(key, value, default)
    small |= _layer_lists(default, declared, small)
    small |= copy.deepcopy(overrides) | copy.deepcopy(changes)
    config = config_class(**small)
    _fit_sections(config, family)
    set_eager(config)
    return config


NEEDED = {
    "vocab_size": VOCABULARY,
    "num_experts_per_tok": 2,
    "head_dim": 16,
    "num_key_value_heads": 2,
}
"""For keys that are None by default and stay so, though the model needs a number."""


def value_of(config: Any, key: str, default: Any = None) -> Any:
    """The value of a config key; where it varies by layer, that of the first layer."""
    key = getattr(config, "attribute_map", {}).get(key, key)
    try:
        return getattr(config, key, default)
    except Exception:  # a per-layer config refuses keys that differ between its layers
        return getattr(config.per_layer_config[0], key, default)


def _declared_default(item: "dataclasses.Field[Any]") -> Any:
    if item.default_factory is not dataclasses.MISSING:
        return item.default_factory()
    return item.default


RULES: list[tuple[str, Callable[[Any, Any], Any]]] = [
    (r"^index_topk$", lambda x, c: 4),
    (r"^index_kpool$", lambda x, c: 2),
    (r"vocab_size(_\w+)?$|^vocab_size_|^num_embeddings$", lambda x, c: VOCABULARY),
    (r"(^|_)(n_shared|num_shared)_experts$", lambda x, c: 1),
    (r"n_group$|topk_group$|num_expert_groups?$", lambda x, c: 1),
    (r"num_experts_per_tok|^moe_k$|top_?k(_experts)?$|num_selected", lambda x, c: 2),
    (r"(num|n)(_\w+)?_experts$|^num_experts\w*$", lambda x, c: min(x, 4)),
    (r"^q_lora_rank|q_rank$", lambda x, c: 32),
    (r"lora_rank$|^\w+_lora_(rank|dim)$|_rank$", lambda x, c: 16),
    (r"^qk_rope_head_dim$", lambda x, c: 8),
    (r"^qk_nope_head_dim$", lambda x, c: 16),
    (r"^rotary_(dim|ndims)$", lambda x, c: 8),
    (r"^v_head_dim$", lambda x, c: 12),
    (r"linear_(num|n)_key_heads", lambda x, c: 2),
    (r"key_value_heads|kv_heads|num_query_groups|_kv_head", lambda x, c: _kv_heads(x, c)),
    (r"^mamba_(n|num)_heads$|^mamba_heads$", lambda x, c: 8),
    (r"^(mamba|ssm|conv)_\w*(state|head)\w*|^ssm_\w+", lambda x, c: 16),
    (r"(attention|attn|query)_heads$|num_heads|n_heads?$|_heads$", lambda x, c: min(x, 4)),
    (r"head_(dim|size)$|kv_channels|^attention_head\w*dim$", lambda x, c: _head_dim(x, c)),
    (r"(intermediate|ffn|mlp|inner|feed_?forward)\w*(size|dim)|^n_inner$", lambda x, c: 64),
    (
        r"^(hidden_size|d_model|n_embd|embed_dim|dim|width|hidden_dim|model_dim|d_ff)$",
        lambda x, c: 64,
    ),
    (
        r"(hidden|embed|embedding|projection|proj|output|out|cross|state)_(size|dim)(_\w+)?$",
        lambda x, c: 64,
    ),
    (
        r"^(depth|n_layers?|num_layers|num_hidden_layers)$|(hidden|encoder|decoder)_layers$",
        lambda x, c: min(x, 4),
    ),
    (r"_layers$|_depth$", lambda x, c: min(x, 2)),
    (r"max\w*position\w*|n_positions|^n_ctx$|max_seq\w*|^block_size$", lambda x, c: min(x, 64)),
    (r"^image_size$|^img_size$|^crop_size$", lambda x, c: 32),
    (r"^patch_size$", lambda x, c: 8 if x > 2 else x),
    (
        r"window\w*size$|sliding_window$|local_attention$|chunk_size$|attention_window",
        lambda x, c: _window(x, c),
    ),
    (r"query_pre_attn_scalar", lambda x, c: 16),
]
"""Key pattern and what becomes of a positive integer, or list of them, under it; first match."""


def shrunk(key: str, value: Any, default: Any) -> Any:
    """The small value of one config key: sizes by rule, token ids into the small vocabulary."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if re.search(r"token_ids?$|token_index$|_token$|token_id_\w+$", key):
        return _token(key, value)
    if isinstance(value, int) and value > 0:
        for pattern, rule in RULES:
            if re.search(pattern, key):
                return rule(value, default)
    if isinstance(value, (list, tuple)) and re.search(r"ind(ex|ic)e?s|_layers$|layers_\w+", key):
        few = [1, 3] if len(value) > 1 else [1]
        if value and all(type(x) is int for x in value):
            return type(value)(few)
    return value


def _token(key: str, value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_token(f"{key}{i}", x) for i, x in enumerate(value)]
    if not isinstance(value, int) or value < 10:
        return value
    return 100 + sum(key.encode()) % 28


def attribute(config: Any, *names: str) -> int | None:
    for name in names:
        value = value_of(config, name)
        if isinstance(value, int) and value > 0:
            return value
    return None


HEADS = ("num_attention_heads", "num_heads", "n_head", "n_heads", "attention_heads")


WIDTH = ("hidden_size", "d_model", "n_embd", "embed_dim", "dim", "width")


def _kv_heads(value: int, config: Any) -> int:
    heads = attribute(config, *HEADS)
    return 4 if value == heads else min(value, 2)


def _head_dim(value: int, config: Any) -> int:
    heads, width = attribute(config, *HEADS), attribute(config, *WIDTH)
    return 16 if heads is None or width is None or heads * value == width else 24


def _window(value: int, config: Any) -> int:
    return 32 if attribute(config, "patch_size", "image_size") else 8


def _layer_lists(
    default: Any, declared: Mapping[str, Any], small: Mapping[str, Any]
) -> dict[str, Any]:
    """Lists with one entry for each layer, made anew so that every distinct kind occurs."""
    key, count = _layer_count(default)
    if key is None or key not in declared:
        return {}
    lists = {
        name: list(value)
        for name in declared
        if isinstance(value := value_of(default, name), (list, tuple))
        and len(value) == count
        and all(isinstance(x, (str, int)) for x in value)
    }
    kinds = {name: list(dict.fromkeys(value)) for name, value in lists.items()}
    most = max((len(x) for x in kinds.values()), default=0)
    layers = max(small.get(key, 4), most if most <= 8 else 0)
    made: dict[str, Any] = {key: layers} if layers != small.get(key) else {}
    for name, values in kinds.items():
        made[name] = [values[i % len(values)] for i in range(layers)]
    return made


def _layer_count(config: Any) -> tuple[str | None, int]:
    for name in ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "depth"):
        value = value_of(config, name)
        if isinstance(value, int):
            return getattr(config, "attribute_map", {}).get(name, name), value
    return None, 0


def _fit_sections(config: Any, family: str) -> None:
    """Sections of multi-axis rotary embeddings must add up to half of the rotary dimension.

    Where the config has none, the modeling file falls back on its full-size ones.
    """
    rope = getattr(config, "rope_parameters", None)
    sources = "".join(inspect.getsource(x) for x in modeling_modules(family))
    if not isinstance(rope, dict) or "mrope_section" not in sources:
        return
    if value_of(config, "vocab_size") is None:
        return
    literal = re.search(r"mrope_section\", (\[[\d, ]+\])", sources)
    standard = ast.literal_eval(literal[1]) if literal else [16, 24, 24]
    nested = [x for x in rope.values() if isinstance(x, dict)]
    for part in nested or [rope]:
        half = int(_rotary_width(config) * (part.get("partial_rotary_factor") or 1.0)) // 2
        section = part.get("mrope_section") or standard
        share = [half * x // sum(section) for x in section]
        for i in range(half - sum(share)):
            share[i] += 1
        part["mrope_section"] = share


def _rotary_width(config: Any) -> int:
    head = attribute(config, "qk_rope_head_dim", "head_dim")
    heads, width = attribute(config, *HEADS), attribute(config, *WIDTH)
    return head or (width // heads if heads and width else 16)

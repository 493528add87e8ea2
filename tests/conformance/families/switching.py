"""The attention features that a tiny configuration can switch, one at a time."""

import ast
import dataclasses
import importlib
import inspect
import re
from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from tests.conformance.families.building import TinyModel
from tests.conformance.families.overrides import VARIANTS
from tests.conformance.families.rotary_classes import own_classes, rotates
from tests.conformance.families.shrinking import value_of

FEATURE = re.compile(
    r"attention|attn|qk|qkv|bias|rope|rotary|sliding|window|sink|clip|softcap|gate|gating|nope|norm"
    r"|parallel|multi_query|architecture|lora_rank|key_equals"
)


NEVER = re.compile(
    r"dropout|implementation|_eps$|norm_topk|epsilon|rms_norm|theta|mlp_bias|type|flash"
    r"|multiplier|pattern"
)


NUMBERS = [(r"clip", 0.5), (r"softcap", 2.0), (r"q_lora_rank", 32), (r"sliding_window", 8)]


def switches(
    config: PreTrainedConfig, family: str, reads: set[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names and changes: booleans flipped, numbers that may be None set or taken away."""
    yield from VARIANTS.get(family, {}).items()
    if value_of(config, "index_topk") is not None:  # sparse attention that leaves nothing out
        yield "index_topk=32", {"index_topk": 32}
    for item in dataclasses.fields(config):
        key = item.name
        if not FEATURE.search(key) or NEVER.search(key) or key not in reads:
            continue
        value = value_of(config, key)
        optional = "None" in str(item.type)
        if isinstance(value, bool):
            yield f"{key}={not value}", {key: not value}
        elif value is None and optional:
            yield from ((f"{key}={x}", {key: x}) for p, x in NUMBERS if re.search(p, key))
        elif key == "sliding_window" and _slides(config):
            continue
        elif isinstance(value, (int, float)) and optional:
            yield f"{key}=None", {key: None}


def _slides(config: PreTrainedConfig) -> bool:
    """Whether layer types say which layers slide, so that a window is not to be taken away."""
    return "sliding_attention" in (value_of(config, "layer_types") or ())


def attributes_read(tiny: TinyModel) -> set[str]:
    """Attribute names that the source of the attention classes (and rotary classes) uses."""
    module = importlib.import_module(tiny.model_class.__module__)
    names: set[str] = set()
    for cls in own_classes(module, nn.Module):
        rotary = "Rotary" in cls.__name__ or "Rope" in cls.__name__
        if rotates(cls) or rotary or cls.__name__ in tiny.attention_classes:
            for base in cls.__mro__:
                if base.__module__ == module.__name__:
                    names |= _attributes(base)
    return names


def _attributes(cls: type) -> set[str]:
    tree = ast.parse(inspect.getsource(cls))
    read = {x.attr for x in ast.walk(tree) if isinstance(x, ast.Attribute)}
    texts = {x.value for x in ast.walk(tree) if isinstance(x, ast.Constant)}
    return read | {x for x in texts if isinstance(x, str) and x.isidentifier()}

"""Writes what transformers' config classes fill in, as `python -m scripts.family_defaults`.

A config.json leaves out what its class has as a default, so the numbers belong to the family. Only
keys that can matter to attention are kept, and only plain values.
"""

import dataclasses
import importlib
import inspect
import json
import re
from pathlib import Path
from typing import Any

import transformers.models
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig

from rope_export.checkpoints.families.tables import DEFAULTS
from rope_export.checkpoints.keys import SUSPICIOUS

ALSO = re.compile(
    "hidden_size|num_hidden|_dim$|eps$|embd|rank$|causal|max_pos|d_model|n_layer|depth"
)
ASKED = 54_321.0
"""A theta that no class has."""
OUTER = {"rope_type", "rope_theta", "partial_rotary_factor"}
NEVER = re.compile(
    "chunk_size_feed_forward|dropout|_act$|activation|token|initializer|router|expert|moe|mamba|conv|output_|intermediate|"
    "tie_|vocab|linear_|ssm|loss|_std$|scaling_factor|quantizer|upsampl|frame|sampl|mlp|_init|codebook|"
    "dtype|cross_attention_hidden|ffn|share|index_topk_freq|pos_embed|image|patch|spatial|temporal"
)


def config_classes() -> dict[str, type[PreTrainedConfig]]:
    """Every config class that has a model_type, of the models that have to do with rotation."""
    found: dict[str, type[PreTrainedConfig]] = {}
    for folder in sorted(Path(transformers.models.__path__[0]).iterdir()):
        models = folder.glob("modeling_*.py")
        if not any(re.search("rotary|rope", path.read_text(encoding="utf-8")) for path in models):
            continue
        for path in folder.glob("configuration_*.py"):
            module = importlib.import_module(f"transformers.models.{folder.name}.{path.stem}")
            for value in vars(module).values():
                config = inspect.isclass(value) and issubclass(value, PreTrainedConfig)
                if config and value.model_type:
                    found.setdefault(value.model_type, value)
    return found


def facts(cls: type[PreTrainedConfig]) -> dict[str, Any]:
    """A class's defaults, other names of its keys, and the types of its inner configs; "partial"
    if the model's code looks at partial_rotary_factor, "mixed" if layers differ in kind, and
    "keeps_theta" if a rope_theta beside no rope parameters changes nothing."""
    kept: dict[str, Any] = _rope(cls)
    for field in dataclasses.fields(cls):
        value = field.default
        if field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
        if _matters(field.name, value):
            kept[field.name] = list(value) if isinstance(value, tuple) else value
    source = Path(inspect.getfile(cls)).parent
    partial = any("partial_rotary" in p.read_text("utf-8") for p in source.glob("modeling_*.py"))
    names = {k: v for k, v in (cls.attribute_map or {}).items() if _matters(k, 1)}
    inner = {
        key: sub.model_type
        for key, sub in cls.sub_configs.items()
        if getattr(sub, "model_type", None)
    }
    return {
        **dict(sorted(kept.items())),
        **({"partial": True} if partial else {}),
        **({"mixed": True} if _mixed(cls) else {}),
        **({"attribute_map": names} if names else {}),
        **({"inner": inner} if inner else {}),
    }


def _rope(cls: type[PreTrainedConfig]) -> dict[str, Any]:
    """The rotation of a config that does not mention it. Plain ones are kept as the keys that an
    older config.json has, which it may give one without the other."""
    given = _rope_parameters(cls)
    asked = _rope_parameters(cls, rope_theta=ASKED)
    scaled = _rope_parameters(cls, rope_scaling={"rope_type": "linear", "factor": 2.0})
    if given is None or asked is None:
        return {}
    theta = {} if isinstance(cls.default_theta, dict) else {"rope_theta": cls.default_theta}
    kept = {} if str(ASKED) in str(asked) else {"keeps_theta": True}
    plain = given.get("rope_type") == "default" and given.keys() <= OUTER
    partial = given.get("partial_rotary_factor")
    if plain and (scaled is None or scaled.get("partial_rotary_factor") == partial):
        return theta | kept | {k: v for k, v in given.items() if k != "rope_type"}
    return theta | kept | {"rope_parameters": given}


def _rope_parameters(cls: type[PreTrainedConfig], **keys: Any) -> dict[str, Any] | None:
    """What a config of these keys has as rope_parameters; None for a class that has no rotation,
    cannot be made without arguments, or refuses the keys."""
    try:
        found = cls(**keys).rope_parameters
    except (AttributeError, TypeError, ValueError, StrictDataclassError):
        return None
    return found if isinstance(found, dict) and found else None


def _mixed(cls: type[PreTrainedConfig]) -> bool:
    """Whether its layers are of several kinds where the file does not name them."""
    try:
        kinds = cls().layer_types
    except (AttributeError, TypeError, ValueError):
        return False
    return bool(set(kinds or ()) - {"full_attention"})


def _matters(key: str, value: Any) -> bool:
    plain = isinstance(value, bool | int | float | str | dict | list | tuple)
    if not plain or NEVER.search(key) or key.startswith("_"):
        return False
    if isinstance(value, dict) and not key.startswith("rope"):
        return False
    return bool(SUSPICIOUS.search(key) or ALSO.search(key))


def main() -> None:
    every = {name: facts(cls) for name, cls in sorted(config_classes().items())}
    lines = (f"{json.dumps(name)}: {json.dumps(found)}" for name, found in every.items() if found)
    DEFAULTS.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")

"""What each model family's code implies beyond its config: one file a family, or a few alike."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from rope_export.errors import SpecError
from rope_export.spec import Layout

Biases = tuple[bool, bool, bool, bool]
"""Whether the q, k, v and o projections have a bias."""


def no_biases(config: Mapping[str, Any]) -> Biases:
    return False, False, False, False


def attention_bias_everywhere(config: Mapping[str, Any]) -> Biases:
    there = bool(config["attention_bias"])
    return there, there, there, there


def head_dim_scale(config: Mapping[str, Any]) -> float | None:
    """The usual head_dim ** -0.5, which the spec computes."""
    return None


@dataclass(frozen=True, kw_only=True)
class Family:
    """How one model_type reads its config; tensor names are those of the common layout.

    defaults: what the family's config class fills in for keys that a config.json leaves out.
    layout: how rotary features pair up. keys: config keys it reads beyond the common ones.
    source: the transformers file the facts were read in.
    """

    model_type: str
    source: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    layout: Layout = "half_split"
    biases: Callable[[Mapping[str, Any]], Biases] = no_biases
    scale: Callable[[Mapping[str, Any]], float | None] = head_dim_scale
    keys: frozenset[str] = frozenset()


def families() -> dict[str, Family]:
    """Every family by its model_type, found by looking into this folder."""
    found: dict[str, Family] = {}
    for module in sorted(m.name for m in iter_modules(__path__)):
        for value in vars(import_module(f"{__name__}.{module}")).values():
            if isinstance(value, Family):
                found[value.model_type] = value
    return found


def family(model_type: object) -> Family:
    """The family called `model_type`.

    Raises: SpecError naming the families there are.
    """
    known = families()
    if not isinstance(model_type, str) or model_type not in known:
        raise SpecError(
            f"model_type={model_type!r} is not supported; supported: {', '.join(sorted(known))}."
        )
    return known[model_type]

"""A model family: how its config is read and its tensors are named."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from rope_export.checkpoints.layout import TensorLayout
from rope_export.errors import SpecError
from rope_export.spec import Layout


class Config(Mapping[str, Any]):
    """A config's keys under their common names; remembers which were looked at, and notes for
    the user on them."""

    def __init__(self, facts: Mapping[str, Any], names: Mapping[str, str]) -> None:
        self.facts, self.names = dict(facts), dict(names)
        self.read: set[str] = set()
        self.notes: set[str] = set()

    def with_more(self, facts: Mapping[str, Any]) -> "Config":
        """The config with other values for some keys; notes of it are notes of this one,
        and what is read there is read here."""
        changed = Config({**self.facts, **facts}, self.names)
        changed.notes, changed.read = self.notes, self.read
        return changed

    def __getitem__(self, key: str) -> Any:
        key = self.names.get(key, key)
        self.read.add(key)
        return self.facts[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.facts)

    def __len__(self) -> int:
        return len(self.facts)

    def flag(self, key: str) -> bool:
        """A switch; missing or null is off.

        Raises: SpecError if it is neither true nor false.
        """
        value = self.get(key)
        if value is not None and not isinstance(value, bool):
            raise SpecError(f"config key {key}={value!r}: it must be true or false.")
        return bool(value)

    def whole(self, key: str) -> int:
        """A count or a width.

        Raises: SpecError if it is missing or not a positive whole number.
        """
        value = self.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise SpecError(f"config key {key}={value!r}: it must be a positive whole number.")
        return value

    def number(self, key: str) -> float:
        """A factor or a small number.

        Raises: SpecError if it is missing or not a number.
        """
        value = self.get(key)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise SpecError(f"config key {key}={value!r}: it must be a number.")
        return float(value)


Facts = dict[str, Any]
"""Fields of an AttentionSpec."""


def nothing_more(config: Config, layer: int) -> Facts:
    return {}


def given_kinds(config: Config) -> list[str] | None:
    """layer_types as the config has them."""
    return config.get("layer_types")


def given_rope(config: Config, layer: int) -> Mapping[str, Any]:
    """The rope parameters as the config has them."""
    return {}


COMMON = TensorLayout()
"""model.layers.N.self_attn.q_proj.weight, and so on."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """How one model_type reads its config and names its tensors.

    attention: fields of the spec that differ from the common reading, for one layer. kinds: the
    kind of every layer where the config lacks it. rope: rope parameters that differ; None for
    a layer without rotation. layout: how rotary features pair up. tensors: names in a checkpoint.
    defaults: beside those of `defaults.json`, for keys that a config.json leaves out. depth: how
    many attention layers, where that is not num_hidden_layers. ignored: keys that have no
    part in the attention's output. missing: what the family's attention has that is not
    implemented, for which every layer is refused. towers: stacks that one config describes, by the
    word in their tensors' names, which `part` takes, and the model_type that each is read as.
    source: where the facts were read.
    """

    model_type: str
    source: str = "transformers 5.24"
    attention: Callable[[Config, int], Facts] = nothing_more
    kinds: Callable[[Config], list[str] | None] = given_kinds
    rope: Callable[[Config, int], Mapping[str, Any] | None] = given_rope
    layout: Layout | Callable[[Config], Layout] = "half_split"
    tensors: TensorLayout | Callable[[Config, int], TensorLayout] = COMMON
    defaults: Mapping[str, Any] = field(default_factory=dict)
    depth: Callable[[Config], int] | None = None
    ignored: frozenset[str] = frozenset()
    missing: str | None = None
    towers: Mapping[str, str] = field(default_factory=dict)

"""Which of a source's tensors make each parameter of transformers' model, by its own rules."""

from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rope_export.errors import CheckpointError

State = dict[str, Tensor]
"""The parameters and persistent buffers of a model on meta, by their names there."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one or more parameters are made of a source's tensors.

    first: name of the parameter, of several the first. sources: names in the source by the pattern
    of the converter that they follow. converter: of transformers; none where the one tensor is the
    parameter.
    """

    first: str
    sources: dict[str, list[str]] = field(default_factory=dict)
    converter: Any = None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for names in self.sources.values() for name in names)

    def made(self, read: Callable[[str], Tensor], model: "Stand") -> dict[str, Tensor]:
        """The parameters by name, in the source's dtype.

        Raises: CheckpointError for tensors that cannot be converted.
        """
        if self.converter is None:
            return {self.first: read(self.names[0])}
        converter = deepcopy(self.converter)
        for pattern, names in self.sources.items():
            for name in names:
                converter.add_tensor(self.first, name, pattern, read(name))
        try:
            made = converter.convert(self.first, model=model, config=model.config)
        except (RuntimeError, ValueError, KeyError, IndexError, TypeError) as error:
            shown = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CheckpointError(
                f"{self.first!r} cannot be made of {len(self.names)} tensors, the first of which "
                f"is {self.names[0]!r} ({shown})."
            ) from error
        return {name: x[0] if isinstance(x, list) else x for name, x in made.items()}


@dataclass(frozen=True)
class Stand:
    """In place of a model, what transformers' converters ask it for."""

    config: Any
    state: State

    def get_parameter(self, name: str) -> Tensor:
        return self.state[name]


def state_of(model: Any) -> dict[str, Tensor]:
    """A model's parameters and persistent buffers, on meta."""
    return {name: torch.empty_like(x, device="meta") for name, x in model.state_dict().items()}


def ties(model: Any) -> dict[str, tuple[str, ...]]:
    """All names of each parameter that has several, by each of them; tied already or to be tied."""
    groups: dict[Any, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), set()).add(name)
    for name, source in getattr(model, "all_tied_weights_keys", {}).items():
        groups.setdefault(source, {source}).add(name)
    by_name: dict[str, set[str]] = {}
    for group in groups.values():
        whole = set().union(group, *(by_name.get(name, ()) for name in group))
        by_name |= dict.fromkeys(whole, whole)
    order = list(model.state_dict())
    return {
        name: tuple(sorted(group, key=order.index))
        for name, group in by_name.items()
        if len(group) > 1
    }


def recipes(
    names: Iterable[str], model: Any, state: State, mapping: list[Any] | None = None
) -> dict[str, Recipe]:
    """The recipe of each parameter that tensors called `names` have a part in.

    model: transformers'. mapping: its rules, without them those for safetensors.
    Source: transformers, core_model_loading.py, convert_and_load_state_dict_in_model.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        dot_natural_key,
        rename_source_key,
    )

    rules = get_model_conversion_mapping(model) if mapping is None else mapping
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    by_pattern = {pattern: rule for rule in converters for pattern in rule.source_patterns}
    prefix = model.base_model_prefix
    found: dict[str, Recipe] = {}
    for name in sorted(names, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, prefix, state)
        if target not in state and name in state:
            target, pattern = rename_source_key(name, [], [], prefix, state)
        if target not in state:
            continue
        converter = None if pattern is None else by_pattern[pattern]
        recipe = found.setdefault(target, Recipe(first=target, converter=converter))
        if recipe.converter is None:  # of several tensors for one parameter the last counts
            recipe.sources.clear()
        recipe.sources.setdefault(pattern or name, []).append(name)
    return {name: recipe for recipe in found.values() for name in _targets(recipe, state)}


def _targets(recipe: Recipe, state: State) -> list[str]:
    """Every parameter that a recipe makes."""
    patterns = [] if recipe.converter is None else recipe.converter.target_patterns
    if len(patterns) < 2:
        return [recipe.first]
    names = [recipe.first.replace(patterns[0], pattern) for pattern in patterns]
    return [name for name in names if name in state]

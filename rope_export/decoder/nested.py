"""The parameters of a text decoder by their names in the checkpoint of the model it is part of."""

from collections.abc import Iterable
from typing import Any

from rope_export.checkpoints.checkpoint import Checkpoint
from rope_export.decoder.naming import Recipe, State, recipes, state_of
from rope_export.decoder.source import config_of
from rope_export.errors import SpecError
from rope_export.reading.models import Unread, built


class Nested:
    """A causal LM in a checkpoint of its own, or as the text decoder of a larger model.

    model: transformers' causal LM. whole: the model that the checkpoint's config names. state: its
    parameters.
    """

    def __init__(self, model: Any, source: Checkpoint) -> None:
        self.model = self.whole = model
        config = config_of(source)
        self.paths: dict[str, str] = {}
        self.state: State = state_of(model)
        if type(config) is type(model.config):
            return
        try:
            self.whole = built(config, model.dtype)
        except Unread as error:
            raise SpecError(f"{source.path}: {error}") from error
        self.paths = _paths(model, self.whole)
        self.state = state_of(self.whole)

    def recipes(self, names: Iterable[str]) -> dict[str, Recipe]:
        """The recipe of each of the causal LM's parameters, by its name in the causal LM."""
        found = recipes(names, self.whole, self.state)
        if self.whole is self.model:
            return found
        inside = {self.outer(name): name for name in state_of(self.model)}
        return {inside[name]: recipe for name, recipe in found.items() if name in inside}

    def outer(self, name: str) -> str:
        """A parameter's name in the whole model."""
        for inside, path in self.paths.items():
            if name.startswith(inside):
                return path + name[len(inside) :]
        return name


def _paths(model: Any, whole: Any) -> dict[str, str]:
    """Where the parts of a causal LM are in a larger model, by their path in it with its dot.

    Raises: SpecError if the larger model has no such decoder.
    """
    base = model.base_model_prefix
    inner = getattr(model, base)
    found = [name for name, module in whole.named_modules() if type(module) is type(inner)]
    if not found:
        raise SpecError(
            f"{type(whole).__name__} has no {type(inner).__name__}, so the text decoder cannot be "
            f"taken out of it."
        )
    paths = {f"{base}.": f"{found[0]}."}
    heads = [_path(x, x.get_output_embeddings()) for x in (model, whole)]
    if None not in heads:
        paths[f"{heads[0]}."] = f"{heads[1]}."
    return paths


def _path(model: Any, module: Any) -> str | None:
    return next((name for name, x in model.named_modules() if x is module), None)

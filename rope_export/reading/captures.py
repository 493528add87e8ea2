"""What a model's own forward hands to the attention of one layer: cos and sin, mask, cache."""

import copy
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rope_export.reading.models import Unread, reason
from rope_export.reading.skeleton import Skeleton, hollow

CACHES = ("cache", "past_key_values", "past_key_value", "layer_past")
"""What the cache is called in a forward; `cache` since transformers 5.24."""
HIDDEN = ("hidden_states", "hidden_state", "x", "inputs", "query", "states", "hidden")


@dataclass(kw_only=True)
class Arguments:
    """A call of the attention as the model makes it. hidden, cache: names of these arguments; no
    cache where the attention is given none."""

    bound: inspect.BoundArguments
    hidden: str
    cache: str | None

    def value(self, name: str) -> Any:
        return _flat(self.bound).get(name)

    def put(self, name: str, value: Any) -> None:
        """Gives the argument another value."""
        for key, parameter in self.bound.signature.parameters.items():
            further = parameter.kind is inspect.Parameter.VAR_KEYWORD
            if further and name in self.bound.arguments.get(key, {}):
                self.bound.arguments[key][name] = value
                return
        self.bound.arguments[name] = value


class _Reached(Exception):
    """The model has come to the attention; nothing after it needs to run."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.args_given, self.kwargs_given = args, kwargs


@contextmanager
def _watched(module: nn.Module) -> Iterator[None]:
    def stop(*args: Any, **kwargs: Any) -> Any:
        raise _Reached(args, kwargs)

    module.forward = stop
    try:
        yield
    finally:
        del module.__dict__["forward"]


def forwards(skeleton: Skeleton) -> list[nn.Module]:
    """Models around the attention that take embeddings, from the outermost inwards."""
    parts = skeleton.path.split(".")
    around = ["", *(".".join(parts[:end]) for end in range(1, len(parts)))]
    modules = [skeleton.model.get_submodule(x) if x else skeleton.model for x in around]
    return [x for x in modules if "inputs_embeds" in inspect.signature(x.forward).parameters]


def arguments(
    skeleton: Skeleton,
    embeds: Tensor,
    *,
    positions: Tensor | None = None,
    mask: Tensor | None = None,
    cache: Any = None,
    use_cache: bool = True,
) -> Arguments:
    """The attention's arguments in one forward of the model.

    embeds: (B, S, width). positions: (B, S) or (axes, B, S), counted by the model unless given.
    mask: int64 (B, T). cache: of the calls before; the model makes its own unless given, where
    use_cache says so.
    Raises: Unread with what the model's forward raised, if it did not come to the attention.
    """
    problem: Exception | None = None
    for model in forwards(skeleton):
        for as_tuple in (False, True):
            hollow(skeleton, as_tuple)
            try:
                return _arguments(skeleton, model, embeds, positions, mask, cache, use_cache)
            except Exception as error:
                problem = problem or error
    hollow(skeleton, False)
    if problem is None:
        raise Unread(f"no model around {skeleton.path} takes embeddings, as towers do not")
    raise Unread(f"the model's forward does not reach the attention ({reason(problem)})")


def _arguments(
    skeleton: Skeleton,
    model: nn.Module,
    embeds: Tensor,
    positions: Tensor | None,
    mask: Tensor | None,
    cache: Any,
    use_cache: bool,
) -> Arguments:
    parameters = inspect.signature(model.forward).parameters
    keywords: dict[str, Any] = {"inputs_embeds": embeds}
    if positions is not None and "position_ids" in parameters:
        keywords["position_ids"] = positions
    if mask is not None:
        keywords["attention_mask"] = mask
    if "use_cache" in parameters:
        keywords["use_cache"] = use_cache
    if cache is not None:
        name = next((x for x in CACHES if x in parameters), None)
        if name is None:
            raise Unread(f"{type(model).__name__} takes no cache")
        keywords[name] = copy.deepcopy(cache)
    module = skeleton.module
    signature = inspect.signature(module.forward)
    with torch.no_grad(), _watched(module):
        try:
            model(**keywords)
        except _Reached as reached:
            bound = signature.bind(*reached.args_given, **reached.kwargs_given)
        else:
            raise Unread(f"{type(model).__name__} did not call {skeleton.path}")
    flat = _flat(bound)
    caches = [k for k, v in flat.items() if hasattr(v, "get_seq_length")]
    return Arguments(bound=bound, hidden=_hidden(flat), cache=caches[0] if caches else None)


def _flat(bound: inspect.BoundArguments) -> dict[str, Any]:
    flat = dict(bound.arguments)
    for name, parameter in bound.signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            flat |= flat.pop(name, {})
    return flat


def _hidden(flat: dict[str, Any]) -> str:
    for name in HIDDEN:
        if isinstance(flat.get(name), Tensor):
            return name
    raise Unread("the attention takes no hidden states that are known by name")

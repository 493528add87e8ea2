"""One layer on the reference's own input: exactly, in eager, and what rounding may do to it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only

from rope_export.arrays import to_numpy
from rope_export.parity.decoder.deviation import Deviation
from rope_export.parity.decoder.passage import Group, Passage, to_float
from rope_export.parity.decoder.roundings import Roundings
from rope_export.parity.decoder.theirs import Theirs

OWN = {"attention_mask", "position_ids", "position_embeddings", "cache_position"}
"""Arguments of a layer that its model makes of positions and masks alone: eager has its own."""

MASSIVE = 2_000.0
"""How many times the root mean square of a text's hidden states one feature of a massive token is.
Source: Sun et al., Massive Activations in Large Language Models, 2024, arXiv:2402.17762."""

LARGEST = 20_000.0
"""What it is at most, so that its products stay within float16."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """One output of a layer, of all rows: (rows, sequence, ...).

    exact, eager: values; squares: (u ||a||)^2 of each, or none where an operation has no rule.
    """

    exact: np.ndarray
    eager: np.ndarray
    squares: np.ndarray | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Block:
    """One layer in one call of a text.

    entering (rows, sequence, hidden): in the artifact's dtype, as are key and value (rows, heads,
    past, width) of each group before the call. output, cache: what comes out; cache by "key" and
    "value", (rows, sequence, heads, width). close (rows, sequence): by how many deviations the
    choice of experts is safe, if there is one. unknown: operations that have no rule.
    """

    entering: np.ndarray
    past: list[dict[str, np.ndarray]]
    output: Part
    cache: dict[str, Part]
    close: np.ndarray | None
    unknown: frozenset[str]


def block_of(passage: Passage, layer: int, dtype: str) -> Block:
    """What a layer makes of the input that the reference has for it in this call."""
    theirs, runs = passage.theirs, []
    for group in passage.groups:
        runs.append(_Run(group, theirs, layer, dtype, massive=passage.text.massive))
    first = runs[0]

    def part(of: Callable[["_Run"], tuple[Tensor, Tensor, Tensor | None]]) -> Part:
        values = [of(run) for run in runs]
        known = [x[2] for x in values if x[2] is not None]
        return Part(
            exact=passage.together([to_float(x[0]) for x in values]),
            eager=passage.together([to_float(x[1]) for x in values]),
            squares=passage.together([to_float(x) for x in known]) if known else None,
        )

    cached = ("key", "value") if first.has_cache else ()
    close = [run.close for run in runs]
    return Block(
        entering=passage.together([to_numpy(run.entering) for run in runs]),
        past=[{name: to_numpy(x) for name, x in run.past.items()} for run in runs],
        output=part(lambda run: run.output),
        cache={name: part(lambda run, name=name: run.cached[name]) for name in cached},
        close=None if close[0] is None else passage.together([to_float(x) for x in close]),
        unknown=frozenset().union(*(run.unknown for run in runs)),
    )


class _Run:
    """One group's rows in one layer, run twice."""

    def __init__(
        self, group: Group, theirs: Theirs, layer: int, dtype: str, *, massive: bool
    ) -> None:
        exact, eager = group.exact.call, group.eager.call
        assert exact is not None and eager is not None
        module, self._dtype = theirs.layers[layer], getattr(torch, dtype)
        self.entering = exact.hidden_states.to(self._dtype)
        if massive:
            self.entering = _massive(self.entering)
        self.past = self._past(exact.kwargs, layer)
        extras = {
            name: tree_map_only(Tensor, self._rounded, x)
            for name, x in exact.kwargs.items()
            if name not in OWN and not _is_cache(x)
        }
        with torch.no_grad():
            with Roundings(theirs.widened, dtype) as roundings:
                for tensor in tree_flatten([exact.kwargs.get(x) for x in ("position_embeddings",)])[0]:
                    if isinstance(tensor, Tensor) and tensor.is_floating_point():
                        squares = torch.full_like(tensor, roundings.u**2) * tensor.abs().max() ** 2
                        roundings.note(tensor, Deviation(squares=squares, depth=1))
                wide = tree_map_only(Tensor, _wide, extras)
                caches = self._caches(exact.kwargs, layer, _wide)
                call = exact.on(_wide(self.entering), {**exact.kwargs, **wide, **caches})
                true = _first(module(*call.args, **call.kwargs))
            caches_eager = self._caches(eager.kwargs, layer, lambda x: x)
            call = eager.on(self.entering, {**eager.kwargs, **extras, **caches_eager})
            rounded = _first(module(*call.args, **call.kwargs))
        known = not roundings.unknown
        self.unknown = set(roundings.unknown)
        self.output = true, rounded, roundings.squares(true) if known else None
        self.cached = {}
        pair = [_layer_of(x, layer) for x in (caches, caches_eager)]
        self.has_cache = pair[0] is not None and pair[1] is not None
        if self.has_cache:
            for name in ("key", "value"):
                both = [getattr(x, f"{name}s") for x in pair]
                squares = roundings.squares(both[0]) if known else None
                self.cached[name] = tuple(map(self._new, (*both, squares)))
        self.close = self._close(roundings)

    def _new(self, cache: Tensor | None) -> Tensor | None:
        """Of (rows, heads, total, width) the new slots, (rows, sequence, heads, width)."""
        if cache is None:
            return None
        return cache[:, :, cache.shape[2] - self.entering.shape[1] :].transpose(1, 2)

    def _past(self, kwargs: Mapping[str, Any], layer: int) -> dict[str, Tensor]:
        """What the reference has cached, rounded."""
        cached = _layer_of(kwargs, layer)
        if cached is None:
            return {}
        return {name: getattr(cached, f"{name}s").to(self._dtype) for name in ("key", "value")}

    def _rounded(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._dtype) if tensor.dtype is torch.float64 else tensor

    def _caches(
        self, kwargs: Mapping[str, Any], layer: int, made: Callable[[Tensor], Tensor]
    ) -> dict[str, Any]:
        """A new cache in place of the forward's own, with the rounded past of this layer."""
        from transformers import DynamicCache

        caches = {}
        for name, value in kwargs.items():
            if _is_cache(value):
                cache = DynamicCache()
                if self.past:
                    cache.update(made(self.past["key"]), made(self.past["value"]), layer)
                caches[name] = cache
        return caches

    def _close(self, roundings: Roundings) -> Tensor | None:
        """(rows, sequence), the smallest margin of each token's choices, in deviations."""
        rows, sequence = self.entering.shape[:2]
        margins = [
            x.reshape(rows, sequence, -1).amin(dim=-1)
            for x in roundings.margins
            if x.numel() % (rows * sequence) == 0
        ]
        return torch.stack(margins).amin(dim=0) if margins else None


def _wide(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _first(output: Any) -> Tensor:
    value: Tensor = output[0] if isinstance(output, tuple) else output
    return value


def _is_cache(value: Any) -> bool:
    from transformers import Cache

    return isinstance(value, Cache)


def _layer_of(kwargs: Mapping[str, Any], layer: int) -> Any:
    """The part of the cache among a layer's arguments that is its own; none if that is empty."""
    for value in kwargs.values():
        if _is_cache(value) and len(value.layers) > layer and value.layers[layer].is_initialized:
            return value.layers[layer]
    return None


def _massive(hidden_states: Tensor) -> Tensor:
    """The first token of each row with one feature that is far larger than all others."""
    changed = hidden_states.clone()
    size = hidden_states.double().square().mean().sqrt() * MASSIVE
    changed[:, 0, hidden_states.shape[-1] // 3] = size.clamp(max=LARGEST)
    return changed

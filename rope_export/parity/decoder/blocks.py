"""One layer on the reference's own input: exactly, in eager, and what rounding may do to it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only

from rope_export.arrays import to_numpy
from rope_export.parity.bounds import ACCUMULATOR
from rope_export.parity.decoder.deviation import Deviation
from rope_export.parity.decoder.passage import Group, Passage, to_float
from rope_export.parity.decoder.roundings import Roundings
from rope_export.parity.decoder.theirs import Theirs
from rope_export.parity.decoder.walk import LayerCall

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

    exact, eager: values; squares: (u ||a||)^2 of each, or none where an operation has no rule;
    rough: the same of a runtime whose kernels round more than eager.
    """

    exact: np.ndarray
    eager: np.ndarray
    squares: np.ndarray | None
    rough: np.ndarray | None


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
    massive = passage.text.massive
    runs = [_Run(group, passage.theirs, layer, dtype, massive) for group in passage.groups]
    close = [run.close for run in runs if run.close is not None]
    return Block(
        entering=passage.together([to_numpy(run.entering) for run in runs]),
        past=[{name: to_numpy(x) for name, x in run.past.items()} for run in runs],
        output=_together(passage, [run.output for run in runs]),
        cache={
            name: _together(passage, [run.cached[name] for run in runs]) for name in runs[0].cached
        },
        close=passage.together([to_float(x) for x in close]) if close else None,
        unknown=frozenset().union(*(run.unknown for run in runs)),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Values:
    """One output of one group's run, as `Part` has it of all of them."""

    exact: Tensor
    eager: Tensor
    squares: Tensor | None
    rough: Tensor | None

    def map(self, function: Callable[[Tensor], Tensor]) -> "_Values":
        return _Values(
            exact=function(self.exact),
            eager=function(self.eager),
            squares=None if self.squares is None else function(self.squares),
            rough=None if self.rough is None else function(self.rough),
        )


def _together(passage: Passage, values: Sequence[_Values]) -> Part:
    def every(tensors: Sequence[Tensor | None]) -> np.ndarray | None:
        known = [to_float(x) for x in tensors if x is not None]
        return passage.together(known) if len(known) == len(tensors) else None

    squares = every([x.squares for x in values])
    rough = every([x.rough for x in values])
    return Part(
        exact=passage.together([to_float(x.exact) for x in values]),
        eager=passage.together([to_float(x.eager) for x in values]),
        squares=squares,
        rough=squares if rough is None else rough,
    )


class _Run:
    """One group's rows in one layer, run exactly and in eager on the same rounded input."""

    def __init__(self, group: Group, theirs: Theirs, layer: int, dtype: str, massive: bool) -> None:
        exact, eager = group.exact.call, group.eager.call
        assert exact is not None
        assert eager is not None
        self.layer, self.dtype = layer, getattr(torch, dtype)
        self.module = theirs.layers[layer]
        self.computed_beyond = theirs.computed_beyond
        self.entering = exact.hidden_states.to(self.dtype)
        if massive:
            self.entering = _massive(self.entering)
        self.past = self._past(exact.kwargs)
        extras = {
            name: tree_map_only(Tensor, self._rounded, x)
            for name, x in exact.kwargs.items()
            if name not in OWN and not _is_cache(x)
        }
        wide = {**exact.kwargs, **tree_map_only(Tensor, _wide, extras)}
        roundings = Roundings(theirs.widened, dtype)
        rough = Roundings(theirs.widened, dtype, theirs.int8_blocks) if theirs.int8_blocks else None
        with torch.no_grad():
            rounded = self._called(eager, self.entering, {**eager.kwargs, **extras}, _same)
            true = self._bounded(roundings, exact, wide)
            other = None if rough is None else self._bounded(rough, exact, wide)

        def values(name: str) -> _Values:
            return _Values(
                exact=true[name],
                eager=rounded[name],
                squares=self._squares(roundings, true, name),
                rough=None if rough is None or other is None else self._squares(rough, other, name),
            )

        self.unknown = roundings.unknown
        self.output = values("output")
        self.cached = {
            name: values(name).map(self._new) for name in ("key", "value") if name in true
        }
        self.close = self._close(roundings)

    def _bounded(
        self, roundings: Roundings, call: LayerCall, kwargs: dict[str, Any]
    ) -> dict[str, Tensor]:
        with roundings:
            _note_rotation(roundings, kwargs, self.computed_beyond)
            return self._called(call, _wide(self.entering), kwargs, _wide)

    def _called(
        self,
        call: LayerCall,
        hidden_states: Tensor,
        kwargs: Mapping[str, Any],
        made: Callable[[Tensor], Tensor],
    ) -> dict[str, Tensor]:
        """The "output", and "key" and "value" of this layer's cache, which begins with what `made`
        makes of the past."""
        from transformers import DynamicCache

        arguments = dict(kwargs)
        for name, value in kwargs.items():
            if _is_cache(value):
                arguments[name] = cache = DynamicCache()
                if self.past:
                    cache.update(made(self.past["key"]), made(self.past["value"]), self.layer)
        again = call.on(hidden_states, arguments)
        output = self.module(*again.args, **again.kwargs)
        values = {"output": output[0] if isinstance(output, tuple) else output}
        cached = _cache_of(arguments, self.layer)
        if cached is not None:
            values |= {"key": cached.keys, "value": cached.values}
        return values

    def _squares(
        self, roundings: Roundings, values: Mapping[str, Tensor], name: str
    ) -> Tensor | None:
        return None if roundings.unknown else roundings.squares(values[name])

    def _new(self, cache: Tensor) -> Tensor:
        """Of (rows, heads, total, width) the new slots, (rows, sequence, heads, width)."""
        return cache[:, :, cache.shape[2] - self.entering.shape[1] :].transpose(1, 2)

    def _past(self, kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
        """What the reference has cached of this layer, rounded."""
        cached = _cache_of(kwargs, self.layer)
        if cached is None:
            return {}
        return {name: getattr(cached, f"{name}s").to(self.dtype) for name in ("key", "value")}

    def _rounded(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.dtype) if tensor.dtype is torch.float64 else tensor

    def _close(self, roundings: Roundings) -> Tensor | None:
        """(rows, sequence), the smallest margin of each token's choices, in deviations."""
        rows, sequence = self.entering.shape[:2]
        margins = [
            x.reshape(rows, sequence, -1).amin(dim=-1)
            for x in roundings.margins
            if x.numel() % (rows * sequence) == 0
        ]
        return torch.stack(margins).amin(dim=0) if margins else None


def _note_rotation(
    roundings: Roundings, kwargs: Mapping[str, Any], computed_beyond: int | None
) -> None:
    """cos and sin, which the model hands to its layers, are stored with an error of u at most.

    Those of a rotation that is computed in a call longer than `computed_beyond` are of frequencies
    with an error of their own in float32: of a power b^-x that of its base, of x, of the power and
    of the quotient, (4 + x ln b) u b^-x in all and so at most 4 u, for each position.
    """
    error: Tensor | float = roundings.u
    positions = kwargs.get("position_ids")
    length = 0 if positions is None else int(positions.max()) + 1
    if computed_beyond is not None and length > computed_beyond:
        error = error + 4 * ACCUMULATOR * kwargs["position_ids"].double()[..., None]
    for tensor in tree_flatten(kwargs.get("position_embeddings"))[0]:
        if isinstance(tensor, Tensor) and tensor.is_floating_point():
            squares = torch.ones_like(tensor) * (error * float(tensor.abs().max())) ** 2
            roundings.note(tensor, Deviation(squares=squares, depth=1))


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _wide(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _is_cache(value: Any) -> bool:
    from transformers import Cache

    return isinstance(value, Cache)


def _cache_of(kwargs: Mapping[str, Any], layer: int) -> Any:
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

"""One text on its way through transformers' model, exactly and in eager, layer by layer."""

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rope_export.arrays import to_torch
from rope_export.interface import Interface
from rope_export.parity.decoder.cases import Text
from rope_export.parity.decoder.exact import Float64
from rope_export.parity.decoder.theirs import Theirs
from rope_export.parity.decoder.walk import Walk


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """Rows that transformers reads as one batch. exact, eager: their two forwards."""

    rows: tuple[int, ...]
    exact: Walk
    eager: Walk


class Passage:
    """A text with its numbers, and the forwards of its rows.

    ids, mask, positions (rows, total). vocabulary: size. drawn: what the text's past holds, by the
    caches of `interface`, (rows, heads, past, width).
    """

    def __init__(
        self,
        text: Text,
        theirs: Theirs,
        vocabulary: int,
        seed: int,
        interface: Interface | None = None,
    ) -> None:
        self.text, self.theirs = text, theirs
        self.drawn = {} if interface is None else text.cached(interface, seed)
        self.ids = text.ids(vocabulary, seed)
        self.mask, self.positions = text.mask(), text.positions()
        self.groups = [
            Group(
                rows=rows,
                exact=Walk(theirs, self._forward(rows, True), lambda: Float64(theirs.widened)),
                eager=Walk(theirs, self._forward(rows, False), nullcontext),
            )
            for rows in text.groups
        ]

    @property
    def walks(self) -> list[Walk]:
        return [walk for group in self.groups for walk in (group.exact, group.eager)]

    def bounds(self, call: int) -> tuple[np.ndarray, np.ndarray]:
        """The slots of each row's new tokens in one call: the first, and one beyond the last."""
        return self.text.lengths[call], self.text.lengths[call + 1]

    def taken(self, values: np.ndarray, call: int) -> np.ndarray:
        """Of (rows, total) the new tokens of one call, (rows, sequence); 0 after a row's last."""
        starts, ends = self.bounds(call)
        taken = np.zeros((self.text.rows, (ends - starts).max()), values.dtype)
        for row, (start, end) in enumerate(zip(starts, ends, strict=True)):
            taken[row, : end - start] = values[row, start:end]
        return taken

    def new(self, call: int) -> np.ndarray:
        """Which of the new tokens of a call are no padding, (rows, sequence)."""
        return self.taken(self.mask, call) == 1

    def written(self, call: int) -> np.ndarray:
        """Which of the new tokens of a call go into the cache, padding too, (rows, sequence)."""
        return self.taken(np.ones_like(self.mask), call) == 1

    def case(self, call: int) -> str:
        """What a call is called in a report."""
        several = len(self.text.counts) > 1
        return f"{self.text.name}, call {call + 1}" if several else self.text.name

    def together(self, values: list[np.ndarray]) -> np.ndarray:
        """What the groups have, (rows of it, sequence, ...), as one (rows, sequence, ...)."""
        longest = max(x.shape[1] for x in values)
        whole = np.zeros((self.text.rows, longest, *values[0].shape[2:]), values[0].dtype)
        for group, value in zip(self.groups, values, strict=True):
            whole[list(group.rows), : value.shape[1]] = value
        return whole

    def logits(self, which: str, last: bool) -> list[np.ndarray]:
        """The logits of each call by the walks "exact" or "eager", (rows, sequence, vocabulary), or
        of the last new token of each row, (rows, 1, vocabulary)."""
        results = [getattr(group, which).result for group in self.groups]
        every = []
        for call in range(len(self.text.counts)):
            whole = self.together([to_float(result[call]) for result in results])
            every.append(last_new(whole, self.new(call)) if last else whole)
        return every

    def _forward(self, rows: tuple[int, ...], wide: bool) -> Callable[[Any], list[Tensor]]:
        """wide: whether its past is to be in float64."""

        def forward(model: Any) -> list[Tensor]:
            from transformers import DynamicCache

            cache = DynamicCache()
            for layer, (key, value) in self._past(rows).items():
                if wide:
                    key, value = key.double(), value.double()
                cache.update(key, value, layer)
            every = []
            for call in range(len(self.text.counts)):
                start, end = (int(x[rows[0]]) for x in self.bounds(call))
                every.append(
                    called(
                        model,
                        self.ids[list(rows), start:end],
                        self.mask[list(rows), :end],
                        self.positions[list(rows), start:end],
                        cache,
                    )
                )
            return every

        return forward

    def _past(self, rows: tuple[int, ...]) -> dict[int, list[Tensor]]:
        """Keys and values of each layer before the first call, where there are any."""
        start = int(self.text.lengths[0][rows[0]])
        layers: dict[int, list[Tensor]] = {}
        for name, values in self.drawn.items() if start else ():
            past = to_torch(np.ascontiguousarray(values[list(rows), :, :start]))
            layers.setdefault(int(name.split(".")[1]), []).append(past)
        return layers


def called(
    model: Any, ids: np.ndarray, mask: np.ndarray, positions: np.ndarray, cache: Any
) -> Tensor:
    """The logits of one call of transformers' model, which fills the cache, if there is one."""
    tensors = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    arguments: dict[str, Any] = {
        name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in tensors.items()
    }
    parameters = inspect.signature(model.forward).parameters
    if "position_ids" not in parameters and "kwargs" not in parameters:
        del arguments["position_ids"]
    arguments["cache" if "cache" in parameters else "past_key_values"] = cache
    logits: Tensor = model(**arguments, use_cache=cache is not None).logits
    return logits


def last_new(values: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Of (rows, sequence, ...) each row's last token that is new, (rows, 1, ...)."""
    last = np.where(new, np.arange(new.shape[1]), -1).max(axis=1)
    last = np.where(last < 0, new.shape[1] - 1, last)
    return values[np.arange(len(values)), last][:, None]


def to_float(tensor: Tensor) -> np.ndarray:
    """In float64, as numpy has it."""
    values: np.ndarray = tensor.detach().double().numpy()
    return values

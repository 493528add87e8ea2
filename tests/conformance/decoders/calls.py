"""The calls that a decoder is compared in, and what transformers answers."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rope_export.sessions import Session

CHUNKS = (7, 1, 1, 1)
"""Tokens of each call: a prefill and decode steps."""
BATCH = 2
PADDED = 3
"""Tokens by which the second row is shorter than the first, where rows differ."""
FREE = 2
"""Slots of a fixed cache that stay free."""
STALE = 7.0
"""What lies in slots that are not filled yet."""
RESERVED = 4
"""The first tokens of a vocabulary have meanings of their own."""


@dataclass(frozen=True)
class Calls:
    """Calls on the same drawn tokens, one upon the cache of the other.

    chunks: tokens of each call. padding: those on the left of the second row that are none.
    """

    vocabulary: int
    padding: int = 0
    chunks: tuple[int, ...] = CHUNKS

    @property
    def total(self) -> int:
        return sum(self.chunks)

    @cached_property
    def ids(self) -> Tensor:
        stream = torch.Generator().manual_seed(20)
        top = min(self.vocabulary, 90)  # tokens of images come last
        return torch.randint(RESERVED, top, (BATCH, self.total), generator=stream)

    @cached_property
    def mask(self) -> Tensor:
        mask = torch.ones_like(self.ids)
        mask[1, : self.padding] = 0
        return mask

    @property
    def positions(self) -> Tensor:
        """As transformers' generate counts them."""
        return (self.mask.cumsum(1) - 1).clamp(min=0)

    @property
    def parts(self) -> list[slice]:
        """The columns of each call."""
        ends = list(accumulate(self.chunks))
        return [slice(end - count, end) for end, count in zip(ends, self.chunks, strict=True)]

    def padding_of(self, row: int) -> int:
        return int((self.mask[row] == 0).sum())


def expected(model: Any, calls: Calls) -> list[Tensor]:
    """What a model of transformers gives for each row by itself, without its padding.

    Returns: for each call (B, S, vocabulary), zeros for tokens that are padding.
    """
    rows = [list(_alone(model, calls, row)) for row in range(BATCH)]
    return [torch.cat(parts) for parts in zip(*rows, strict=True)]


def _alone(model: Any, calls: Calls, row: int) -> Iterator[Tensor]:
    cache, padding = None, calls.padding_of(row)
    for part in calls.parts:
        start = max(part.start, padding)
        ids = calls.ids[row : row + 1, start : part.stop]
        positions = torch.arange(start - padding, part.stop - padding)[None]
        found = _called(model, ids, positions, None, cache)
        cache = found.past_key_values
        yield torch.nn.functional.pad(found.logits, (0, 0, start - part.start, 0))


def together(model: Any, calls: Calls) -> list[Tensor]:
    """What a model of transformers gives for all rows, with the mask that tells the padding."""
    cache, logits = None, []
    for part in calls.parts:
        mask = calls.mask[:, : part.stop] if calls.padding else None
        found = _called(model, calls.ids[:, part], calls.positions[:, part], mask, cache)
        cache = found.past_key_values
        logits.append(found.logits)
    return logits


@torch.no_grad()
def _called(model: Any, ids: Tensor, positions: Tensor, mask: Tensor | None, cache: Any) -> Any:
    given = {} if mask is None else {"attention_mask": mask}
    return model(
        input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True, **given
    )


def answered(session: Session, calls: Calls) -> list[Tensor]:
    """What an artifact gives, each call's caches from the call before."""
    interface, logits = session.interface, []
    sizes = {"batch": BATCH, "past": 0, "capacity": calls.total + FREE}
    caches = {
        pair.input: np.full(
            interface.input(pair.input).sized(sizes), STALE, interface.input(pair.input).dtype
        )
        for pair in interface.caches
    }
    for part in calls.parts:
        given: dict[str, Any] = {
            "input_ids": calls.ids[:, part].numpy(),
            "attention_mask": calls.mask[:, : part.stop].numpy(),
            "position_ids": calls.positions[:, part].numpy(),
            **caches,
        }
        if interface.lengths is not None:
            given[interface.lengths] = np.full(BATCH, part.start, np.int64)
        outputs = session.run({k: np.ascontiguousarray(v) for k, v in given.items()})
        caches = {pair.input: np.asarray(outputs[pair.output]) for pair in interface.caches}
        logits.append(torch.as_tensor(outputs["logits"]))
    return logits


def largest_error(found: list[Tensor], wanted: list[Tensor], calls: Calls) -> float:
    """The largest error of any call's logits, scaled by the largest of these; infinite for NaN.

    found: (B, S, vocabulary), or (B, 1, vocabulary) of the last token. Padding is left out.
    """
    largest = 0.0
    for part, ours, theirs in zip(calls.parts, found, wanted, strict=True):
        last = ours.shape[1] == 1
        real = calls.mask[:, part].bool()[:, -1:] if last else calls.mask[:, part].bool()
        theirs = theirs[:, -1:] if last else theirs
        if ours.shape != theirs.shape:
            return float("inf")
        one, other = ours[real].double(), theirs[real].double()
        error = float((one - other).abs().max() / other.abs().max().clamp(min=1e-30))
        largest = max(largest, error if error == error else float("inf"))
    return largest

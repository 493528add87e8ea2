"""Slots of a cache that nobody may look at: beyond a row's length, or padding.

An operator that computes over every slot and hides some by a mask multiplies what they hold by 0,
and 0 times a NaN or an infinity is NaN. So they are zero, or at least of moderate size.
"""

import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rope_export.arrays import check_mask, like, to_numpy
from rope_export.errors import TensorError

if TYPE_CHECKING:
    from rope_export.arrays import Array

FAR_FROM_OVERFLOW = 64
"""What a hidden slot holds is at most the dtype's largest number over this, so that its score with
a query, whose absolute values add up to less than this after scaling, is finite before it is
hidden."""


def clear(caches: "Iterable[tuple[Array, int]]", first: np.ndarray, last: np.ndarray) -> None:
    """Write zeros into the slots from `first` to before `last` of each row, int64 (B,) both.

    caches: (B, ..., T, ...) each, and the axis of its slots.
    """
    rows = np.flatnonzero(first < last).tolist()
    if not rows:
        return
    spans = [(row, int(first[row]), int(last[row])) for row in rows]
    places: dict[int, list[Any]] = {}
    for cache, axis in caches:
        if axis not in places:
            places[axis] = [place_of(axis, *span) for span in spans]
        for place in places[axis]:
            cache[place] = 0


def place_of(axis: int, row: int, first: int, last: int) -> Any:
    """Where the slots from `first` to before `last` of one row are, which lie on `axis`."""
    return (row, *(slice(None),) * (axis - 1), slice(first, last))


def slots_of(cache: "Array", axis: int, row: int, first: int, last: int) -> "Array":
    """A view of the slots from `first` to before `last` of one row, which lie on `axis`."""
    return cache[place_of(axis, row, first, last)]


def without(tokens: "Array", padded: np.ndarray) -> "Array":
    """A copy of the main input (B, S, ...) with zeros for tokens that are `padded`, (B, S)."""
    copy: Any = tokens.copy() if isinstance(tokens, np.ndarray) else tokens.clone()
    copy[like(copy, padded)] = 0
    return copy


@dataclass(frozen=True)
class Hidden:
    """What a call hides: slots of its cache, bool (B, T), and of its new tokens, (B, S) or none."""

    cached: np.ndarray
    new: np.ndarray | None


def hidden_slots(
    mask: "Array | None", lengths: np.ndarray | None, axes: Mapping[str, int], *, stale: bool
) -> Hidden | None:
    """What a call hides, or nothing if it looks at every slot and token.

    mask: int64 (B, T) or fewer slots or, of a growing cache, (B, P + S). lengths: int64 (B,) of a
    fixed cache.
    axes: the size of every axis. stale: whether slots after those that the call writes count.
    Raises: TensorError for a mask of anything but 0 and 1.
    """
    padding = None
    if mask is not None:
        check_mask(mask)
        padding = to_numpy(mask) == 0
        padding = padding if padding.any() else None
    sequence = axes["sequence"]
    if lengths is None:
        if padding is None:
            return None
        past = padding.shape[1] - sequence
        new = padding[:, past:]
        return Hidden(padding[:, :past], new if new.any() else None)
    first = lengths[:, None]
    slots = np.arange(axes["capacity"])
    used, written = slots < first, slots < first + sequence
    hidden = np.broadcast_to(~written & stale, written.shape)
    if padding is None:
        return Hidden(hidden, None) if hidden.any() else None
    after = axes["capacity"] - padding.shape[1]
    padding = np.pad(padding, ((0, 0), (0, after)))
    new = np.take_along_axis(padding, first + np.arange(sequence), axis=1)
    return Hidden(hidden | (padding & used), new if new.any() else None)


class Once:
    """Objects that were seen, as long as they live."""

    def __init__(self) -> None:
        self._seen: dict[int, weakref.ref[Any]] = {}

    def __contains__(self, thing: object) -> bool:
        seen = self._seen.get(id(thing))
        return seen is not None and seen() is thing

    def add(self, thing: object) -> None:
        key = id(thing)
        self._seen[key] = weakref.ref(thing, lambda _: self._seen.pop(key, None))


def check_hidden(name: str, cache: "Array", hidden: np.ndarray, limit: float, *, axis: int) -> None:
    """Refuse a cache (B, ..., T, ...), its slots on `axis`, that holds a NaN, or more than `limit`,
    in a slot that is hidden, bool (B, T).

    Raises: TensorError naming row and slot.
    """
    for row in np.flatnonzero(hidden.any(axis=1)):
        slots = np.flatnonzero(hidden[row])
        span = slots_of(cache, axis, int(row), int(slots[0]), int(slots[-1]) + 1)
        if is_moderate(span, limit):
            continue
        for slot in slots:
            held = slots_of(cache, axis, int(row), int(slot), int(slot) + 1)
            if not is_moderate(held, limit):
                raise TensorError(
                    f"input {name!r}: row {row} has a NaN, an infinity or a number beyond "
                    f"{limit:.4g} in slot {slot}, which is padding or not valid; this artifact "
                    f"computes over such slots, so they must be moderate. Fill them with zeros."
                )


def is_moderate(values: "Array", limit: float) -> bool:
    """Whether every number is at most `limit` in size; a NaN is not."""
    if 0 in values.shape:
        return True
    low, high = values.min(), values.max()  # each NaN if there is a NaN
    return bool((low >= -limit) & (high <= limit))


def limit_of(dtype: str) -> float:
    """The largest size of a number in a hidden slot, by the name of its dtype."""
    if dtype == "float16":
        return float(np.finfo(np.float16).max) / FAR_FROM_OVERFLOW
    return float(np.finfo(np.float32).max) / FAR_FROM_OVERFLOW  # bfloat16's is about the same

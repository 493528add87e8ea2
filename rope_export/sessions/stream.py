"""A stream: calls that follow one another and share a cache, which the caller does not see."""

from typing import TYPE_CHECKING

import numpy as np

from rope_export.arrays import (
    check_mask,
    dtype_name,
    is_torch,
    like,
    plain,
    to_numpy,
    whole_numbers,
    writable,
)
from rope_export.errors import InputError, TensorError
from rope_export.interface import LENGTHS, bind_axes, cache_names, check_lengths
from rope_export.runtimes import allocate
from rope_export.sessions.slots import clear, without

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rope_export.runtimes import Array, Held, Session


class Stream:
    """One batch of sequences on its way through an artifact, for one thread at a time.

    A fixed cache is allocated once and written in place; its rows may have different lengths. A
    growing one is handed on from call to call; its rows have one length.

    What padded tokens hold and what a slot held before it was given up never reaches a result, not
    even a NaN: padded tokens are taken as zeros, and every slot beyond a row's length is zero.
    """

    def __init__(self, session: "Session", *, batch: int, capacity: int | None) -> None:
        self.kind = session.manifest.cache
        if self.kind == "none":
            raise InputError(
                "the artifact has no cache, so its calls do not follow one another; export with "
                "cache 'growing' or 'fixed'."
            )
        for name, count in (("batch", batch), ("capacity", capacity)):
            if count is not None and (isinstance(count, bool) or not isinstance(count, int)):
                raise InputError(f"{name}={count!r}: it must be a whole number.")
        if batch < 1:
            raise InputError(f"batch={batch}: a stream has at least one row.")
        if self.kind == "fixed" and session.capacity is not None:
            if capacity not in (None, session.capacity):
                raise InputError(
                    f"capacity={capacity}: the engine was built for a cache of "
                    f"{session.capacity}; leave it out, or build for another --profile."
                )
            capacity = session.capacity
        if self.kind == "fixed" and capacity is None:
            raise InputError("capacity is missing: a fixed cache is allocated when it is started.")
        if capacity is not None and capacity < 1:
            raise InputError(f"capacity={capacity}: a cache has room for at least one entry.")
        self.batch, self.capacity = batch, capacity
        self._session = session
        self._lengths = np.zeros(batch, np.int64)
        self._cache: dict[str, Array] = {}
        self._held: Held | None = None
        self._used: Array | None = None
        self._checked: tuple[object, dict[str, int]] = (None, {})
        self._mask: np.ndarray | None = None

    @property
    def lengths(self) -> np.ndarray:
        """Entries in use of each row, int64 (batch); with a fixed cache it may be set to fewer, and
        the entries after them are forgotten."""
        return self._lengths.copy()

    @lengths.setter
    def lengths(self, lengths: "Sequence[int] | np.ndarray") -> None:
        wanted = whole_numbers("lengths", lengths, self.batch)
        if self.kind == "growing" and np.any(wanted != self._lengths):
            raise InputError(
                "a growing cache holds as many entries in every row as there are; export with "
                "cache 'fixed' to set them row by row."
            )
        for row, (asked, held) in enumerate(zip(wanted, self._lengths, strict=True)):
            if not 0 <= asked <= held:
                raise TensorError(
                    f"lengths: row {row} of the cache holds {held} entries, not {asked}; lengths "
                    f"may be lowered, to 0 at least. Call step to add entries."
                )
        clear(self._cache.values(), wanted, self._lengths)
        self._lengths = wanted

    def assume_lengths(self, lengths: "Sequence[int] | np.ndarray") -> None:
        """Take the rows of a fixed cache to hold so many entries, zeros where none were written: to
        measure a step at a length, again and again, without the calls that lead there.

        Raises: TensorError for lengths that the cache has no room for.
        """
        wanted = whole_numbers("lengths", lengths, self.batch)
        check_lengths(wanted.tolist(), 0, self.capacity or 0)
        self._lengths = wanted

    def step(
        self,
        hidden_states: "Array",
        position_ids: "Array | None" = None,
        attention_mask: "Array | None" = None,
        *,
        new: "Sequence[int] | np.ndarray | None" = None,
    ) -> "Array":
        """One call: the new tokens see the cache, and are in it afterwards.

        hidden_states: (batch, sequence, hidden). position_ids: as the artifact takes them; without,
        they count on from each row's entries. attention_mask: (batch, sequence) of the new tokens,
        1 or 0, where the artifact was exported with padding; 1 unless given. new: whole numbers
        (batch), how many of the tokens each row really has, those after them being padding on the
        right that the next call overwrites; only with a fixed cache.
        Returns: attention_output, of the kind of hidden_states and on the same device.
        Raises: TensorError for what breaks the contract, or a row that is full; the cache is then
            what it was.
        """
        hidden_states = self._check(hidden_states)
        sequence = int(hidden_states.shape[1])
        counts = self._counts(new, sequence)
        check_lengths(self._lengths.tolist(), sequence, self.capacity or 2**62)
        given = self._new_mask(attention_mask, sequence)
        padded = _padded(given, None if new is None else counts, sequence)
        inputs = {
            "hidden_states": hidden_states if padded is None else without(hidden_states, padded)
        }
        names = [tensor.name for tensor in self._session.inputs]
        if "position_ids" in names:
            inputs["position_ids"] = (
                self._positions(hidden_states, sequence)
                if position_ids is None
                else self._given("position_ids", position_ids, hidden_states)
            )
        elif position_ids is not None:
            raise TensorError("input 'position_ids' is given, but positions have no effect here.")
        self._session.check_positions(inputs)
        mask = self._masked(given, sequence)
        if mask is not None:
            inputs["attention_mask"] = like(hidden_states, mask)
        if self.kind == "growing":
            outputs = self._run_growing(inputs)
        else:
            outputs = self._run_fixed(inputs, sequence, None if new is None else counts)
        self._lengths = self._lengths + counts
        self._mask = mask
        return outputs["attention_output"]

    def reset(self, rows: "Sequence[int] | None" = None) -> None:
        """Forget what the rows hold, all of them unless given; their memory stays.

        rows: indices of rows, whole numbers.
        Raises: InputError for a row that does not exist, or single rows of a growing cache.
        """
        every = list(range(self.batch))
        chosen = every if rows is None else sorted(set(whole_numbers("rows", rows).tolist()))
        for row in chosen:
            if row not in every:
                raise InputError(f"row {row} does not exist; the stream has {self.batch}.")
        if self.kind == "growing":
            if chosen != every:
                raise InputError(
                    "rows of a growing cache have one length, so they are reset together; export "
                    "with cache 'fixed' to reset single rows."
                )
            self._cache, self._mask = {}, None
        kept = self._lengths.copy()
        kept[chosen] = 0
        clear(self._cache.values(), kept, self._lengths)
        if self._mask is not None:
            self._mask[chosen] = 1
        self._lengths = kept

    def _check(self, hidden_states: "Array") -> "Array":
        """hidden_states as a plain tensor."""
        hidden_states = plain("hidden_states", hidden_states)
        if hidden_states.ndim != 3 or hidden_states.shape[0] != self.batch:
            raise TensorError(
                f"input 'hidden_states' has shape {tuple(hidden_states.shape)}; want (batch, "
                f"sequence, hidden) with batch = {self.batch}."
            )
        for value in self._cache.values():
            if is_torch(value) != is_torch(hidden_states):
                raise TensorError(
                    "the stream was started with the other kind of tensor; give numpy arrays or "
                    "torch tensors throughout."
                )
        return hidden_states

    def _given(self, name: str, value: "Array", hidden_states: "Array") -> "Array":
        value = plain(name, value)
        if is_torch(value) != is_torch(hidden_states):
            raise TensorError("inputs mix numpy arrays and torch tensors; give one kind.")
        return value

    def _counts(self, new: "Sequence[int] | np.ndarray | None", sequence: int) -> np.ndarray:
        if new is None:
            return np.full(self.batch, sequence)
        counts = whole_numbers("new", new, self.batch)
        if np.any((counts < 0) | (counts > sequence)):
            raise TensorError(
                f"new={counts.tolist()}: want {self.batch} counts from 0 to {sequence}."
            )
        if self.kind == "growing" and np.any(counts != sequence):
            raise InputError(
                "rows of a growing cache have one length; export with cache 'fixed' for rows of "
                "different length."
            )
        return counts

    def _caches(self, kind: "Array") -> "dict[str, Array]":
        """The cache as inputs, allocated with zeros at the first call."""
        if not self._cache:
            axes = {"batch": self.batch, "past": 0, "capacity": self.capacity or 0}
            types = [
                tensor
                for tensor in self._session.inputs
                if "past" in tensor.shape or "capacity" in tensor.shape
                if tensor.name != "attention_mask"
            ]
            with writable(kind):
                self._cache = allocate(types, axes, kind)
            for value in self._cache.values():
                value[...] = 0
        return self._cache

    def _positions(self, kind: "Array", sequence: int) -> "Array":
        (taken,) = (t for t in self._session.inputs if t.name == "position_ids")
        positions = self._lengths[:, None] + np.arange(sequence)
        axes = [axis for axis in taken.shape[:-2] if isinstance(axis, int)]
        return like(kind, np.broadcast_to(positions, (*axes, *positions.shape)).copy())

    def _new_mask(self, given: "Array | None", sequence: int) -> np.ndarray | None:
        """The mask of the new tokens, int64 (batch, sequence)."""
        if given is None:
            return None
        if not self._session.manifest.padding:
            raise TensorError(
                "input 'attention_mask' is given, but the artifact takes none; export it with "
                "padding."
            )
        mask = to_numpy(plain("attention_mask", given))
        if mask.shape != (self.batch, sequence):
            raise TensorError(
                f"input 'attention_mask' has shape {mask.shape}; want {(self.batch, sequence)}, "
                f"one for each new token."
            )
        if mask.dtype.kind not in "iub":
            raise TensorError(f"input 'attention_mask' is {mask.dtype.name}; it must be int64.")
        mask = mask.astype(np.int64)
        check_mask(mask)
        return mask

    def _masked(self, given: np.ndarray | None, sequence: int) -> np.ndarray | None:
        """The mask of every slot after the call, as the artifact takes it."""
        if not self._session.manifest.padding:
            return None
        new = np.ones((self.batch, sequence), np.int64) if given is None else given
        if self.kind == "growing":
            return new if self._mask is None else np.concatenate((self._mask, new), axis=1)
        assert self.capacity is not None
        before = self._mask
        mask = np.ones((self.batch, self.capacity), np.int64) if before is None else before.copy()
        for row, values, at in zip(mask, new, self._lengths, strict=True):
            row[at : at + sequence] = values
        return mask

    def _run_growing(self, inputs: "dict[str, Array]") -> "dict[str, Array]":
        inputs = inputs | self._caches(inputs["hidden_states"])
        outputs = self._session._run(inputs, self._axes(inputs), {})
        self._cache = {
            before: outputs[after]
            for before, after in (_pair(name, self.kind) for name in self._cache)
        }
        return outputs

    def _run_fixed(
        self, inputs: "dict[str, Array]", sequence: int, counts: np.ndarray | None
    ) -> "dict[str, Array]":
        """A call in place, after which the slots of tokens beyond `counts` are zero."""
        try:
            outputs = self._call_fixed(inputs)
        except BaseException:  # an interrupt too leaves half a call behind
            clear(self._cache.values(), self._lengths, self._lengths + sequence)
            raise
        if counts is not None:
            clear(self._cache.values(), self._lengths + counts, self._lengths + sequence)
        return outputs

    def _call_fixed(self, inputs: "dict[str, Array]") -> "dict[str, Array]":
        """What stays from call to call is bound, and a call like the last one checked, only once:
        both take as long as a small layer."""
        caches = self._caches(inputs["hidden_states"])
        if self._held is None or self._used is None:
            with writable(inputs["hidden_states"]):
                self._used = like(inputs["hidden_states"], self._lengths.copy())
            into = {_pair(name, self.kind)[1]: value for name, value in caches.items()}
            self._held = self._session._hold(caches | {LENGTHS: self._used}, into)
        given = [(name, value.dtype, value.shape) for name, value in inputs.items()]
        if given != self._checked[0]:
            self._checked = (given, self._axes(inputs | caches | {LENGTHS: self._used}))
        self._used[...] = like(self._used, self._lengths)  # type: ignore[assignment]
        return self._held(inputs, self._checked[1])

    def _axes(self, inputs: "dict[str, Array]") -> dict[str, int]:
        given = {name: (dtype_name(value), value.shape) for name, value in inputs.items()}
        return bind_axes(self._session.inputs, given)


def _pair(before: str, kind: str) -> tuple[str, str]:
    """A cache's input and output, from the input's name."""
    return cache_names(before.removeprefix("past_").removesuffix("_cache"), kind)


def _padded(mask: np.ndarray | None, counts: np.ndarray | None, sequence: int) -> np.ndarray | None:
    """Which of the new tokens are padding, bool (batch, sequence), or nothing if none is.

    mask: of the new tokens. counts: how many of them each row really has.
    """
    padded = None if mask is None else mask == 0
    if counts is not None:
        after = np.arange(sequence) >= counts[:, None]
        padded = after if padded is None else padded | after
    return padded if padded is not None and padded.any() else None

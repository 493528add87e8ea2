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
)
from rope_export.errors import InputError, TensorError
from rope_export.sessions.caches import Caches, FixedCaches, GrowingCaches
from rope_export.sessions.slots import without
from rope_export.sessions.values import check_plain, check_positions, check_reach, check_tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rope_export.arrays import Array
    from rope_export.artifacts.manifest import ModelFacts
    from rope_export.interface import Interface
    from rope_export.runtimes import Runner


class Stream:
    """One batch of sequences on its way through an artifact, for one thread at a time.

    A fixed cache is allocated once and written in place; its rows may have different lengths. A
    growing one is handed on from call to call; its rows have one length.

    What padded tokens hold, and what a slot held before it was given up, never reaches a result,
    not even a NaN: padded tokens are taken as zeros, and every slot beyond a row's length is zero.
    """

    def __init__(
        self, manifest: "ModelFacts", runner: "Runner", *, batch: int, capacity: int | None
    ) -> None:
        self.kind = manifest.interface.cache
        if self.kind == "none":
            raise InputError(
                "the artifact has no cache, so its calls do not follow one another; export with "
                "cache 'growing' or 'fixed'."
            )
        _check_size("batch", batch)
        _check_size("capacity", capacity)
        if self.kind == "fixed":
            capacity = _capacity(capacity, runner.capacity)
        self.batch, self.capacity = batch, capacity
        self._manifest, self.interface = manifest, manifest.interface
        self._main = self.interface.input(self.interface.main_input)
        self._position_axes = _leading(self.interface)
        self._lengths = np.zeros(batch, np.int64)
        self._shown = np.zeros(batch, np.int64)
        self._caches: Caches = (
            GrowingCaches(self.interface, runner, batch)
            if self.kind == "growing" or capacity is None
            else FixedCaches(self.interface, runner, batch, capacity)
        )

    @property
    def lengths(self) -> np.ndarray:
        """Valid slots of each row, int64 (batch); with a fixed cache it may be set to fewer, and
        what the slots after them held is forgotten."""
        return self._lengths.copy()

    @lengths.setter
    def lengths(self, lengths: "Sequence[int] | np.ndarray") -> None:
        requested = whole_numbers("lengths", lengths, self.batch)
        if self.kind == "growing" and np.any(requested != self._lengths):
            raise InputError(
                "every row of a growing cache holds the same number of entries; export with cache "
                "'fixed' to set them row by row."
            )
        for row, (asked, held) in enumerate(zip(requested, self._lengths, strict=True)):
            if not 0 <= asked <= held:
                raise TensorError(
                    f"lengths: row {row} of the cache holds {held} entries, not {asked}; lengths "
                    f"may be lowered, to 0 at least. Call step to add entries."
                )
        self._caches.forget(requested, self._lengths)
        self._lengths, self._shown = requested, self._caches.shown(requested)

    def assume_lengths(self, lengths: "Sequence[int] | np.ndarray") -> None:
        """Take so many slots of each row of a fixed cache as valid, zeros where none were written.

        So a step can be measured at one length again and again, without the calls before it.
        Raises: TensorError for lengths that the cache has no room for.
        """
        requested = whole_numbers("lengths", lengths, self.batch)
        self.interface.check_lengths(requested.tolist(), 0, self.capacity or 0)
        self._lengths, self._shown = requested, self._caches.shown(requested)

    def step(
        self,
        tokens: "Array | None" = None,
        /,
        position_ids: "Array | None" = None,
        attention_mask: "Array | None" = None,
        *,
        new: "Sequence[int] | np.ndarray | None" = None,
        **main: "Array",
    ) -> "Array":
        """One call: the new tokens see the cache, and are in it afterwards.

        tokens: the main input (batch, sequence, ...), by position or by its name, such as
        hidden_states. position_ids: as the artifact takes them; without, they count on from each
        row's entries, in a decoder from those that its mask shows. attention_mask: (batch,
        sequence) of the new tokens, 1 or 0, where the artifact was exported with padding, and in a
        decoder; 1 unless given. new: whole numbers (batch), how many of
        the tokens each row really has, those after them being padding on the right that the next
        call overwrites; only with a fixed cache.
        Returns: the main output, of the kind of the tokens and on the same device.
        Raises: TensorError for what does not fit the interface, or a row that is full; the cache is
            then what it was.
        """
        interface = self.interface
        tokens = self._tokens(tokens, main)
        sequence = int(tokens.shape[1])
        counts = self._counts(new, sequence)
        interface.check_lengths(self._lengths.tolist(), sequence, self.capacity or 2**62)
        mask = self._mask(attention_mask, sequence)
        padded = _padded(mask, None if new is None else counts, sequence)
        inputs = {interface.main_input: tokens if padded is None else without(tokens, padded)}
        if interface.positions is not None:
            inputs[interface.positions] = self._positions(position_ids, tokens, padded)
        elif position_ids is not None:
            reason = "positions have no effect here."
            if interface.mask is not None and not self._manifest.padding:
                reason = "without padding each token is at the position of its slot."
            raise TensorError(f"input 'position_ids' is given, but {reason}")
        for check in (check_tokens, check_positions, check_reach):
            check(self._manifest, inputs)
        check_plain(
            self._manifest,
            rows=self.batch,
            new=sequence,
            lengths=self._lengths,
            padded=padded is not None,
        )
        mask = None
        if interface.mask is not None:
            shape = (self.batch, sequence)
            mask = np.ones(shape, np.int64) if padded is None else (~padded).astype(np.int64)
        outputs = self._caches.run(inputs, self._lengths, None if new is None else counts, mask)
        self._shown = self._shown + (counts if padded is None else (~padded).sum(axis=1))
        self._lengths = self._lengths + counts
        return outputs[interface.main_output]

    def reset(self, rows: "Sequence[int] | None" = None) -> None:
        """Empty the rows; their memory stays.

        rows: indices of rows, whole numbers; all of them unless given.
        Raises: InputError for a row that does not exist, or single rows of a growing cache.
        """
        every = list(range(self.batch))
        chosen = every if rows is None else sorted(set(whole_numbers("rows", rows).tolist()))
        for row in chosen:
            if row not in every:
                raise InputError(f"row {row} does not exist; the stream has {self.batch}.")
        if self.kind == "growing" and chosen != every:
            raise InputError(
                "rows of a growing cache have one length, so they are reset together; export "
                "with cache 'fixed' to reset single rows."
            )
        self._caches.reset(chosen, self._lengths)
        self._lengths[chosen] = self._shown[chosen] = 0

    def _tokens(self, tokens: "Array | None", main: "dict[str, Array]") -> "Array":
        """The main input as a plain tensor."""
        expected = self._main
        if main:
            if tokens is not None or main.keys() != {expected.name}:
                raise TypeError(f"step() takes {expected.name} once, and no {', '.join(main)}.")
            tokens = main[expected.name]
        tokens = plain(expected.name, tokens)
        if tokens.ndim != len(expected.shape) or tokens.shape[0] != self.batch:
            raise TensorError(
                f"input {expected.name!r} has shape {tuple(tokens.shape)}; want {expected} with "
                f"batch = {self.batch}."
            )
        if dtype_name(tokens) != expected.dtype:
            raise TensorError(
                f"input {expected.name!r} is {dtype_name(tokens)}; it must be {expected.dtype}."
            )
        if not tokens.shape[1]:
            raise TensorError("sequence = 0: there must be at least one.")
        if self._caches.of_torch not in (None, is_torch(tokens)):
            raise TensorError(
                "the stream was started with the other kind of tensor; give numpy arrays or torch "
                "tensors throughout."
            )
        return tokens

    def _counts(self, new: "Sequence[int] | np.ndarray | None", sequence: int) -> np.ndarray:
        """How many of the new tokens each row really has, int64 (batch)."""
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

    def _positions(
        self, position_ids: "Array | None", tokens: "Array", padded: np.ndarray | None
    ) -> "Array":
        """The positions of the new tokens: those given, or counted on from each row's entries,
        or from those of them that its mask shows."""
        name = str(self.interface.positions)
        if position_ids is None:
            positions = self._counted(tokens.shape[1], padded)
            shape = (*self._position_axes, *positions.shape)
            return like(tokens, np.broadcast_to(positions, shape).copy())
        position_ids = plain(name, position_ids)
        if is_torch(position_ids) != is_torch(tokens):
            raise TensorError("inputs mix numpy arrays and torch tensors; give one kind.")
        return position_ids

    def _counted(self, sequence: int, padded: np.ndarray | None) -> np.ndarray:
        """Positions of the new tokens that nobody gave, int64 (batch, sequence)."""
        if self.interface.positions_count == "slots":
            return self._lengths[:, None] + np.arange(sequence)
        if padded is None:
            return self._shown[:, None] + np.arange(sequence)
        ones = self._shown[:, None] + np.cumsum(~padded, axis=1)
        positions: np.ndarray = np.maximum(ones - 1, 0)
        return positions

    def _mask(self, attention_mask: "Array | None", sequence: int) -> np.ndarray | None:
        """The mask of the new tokens as the caller gives it, int64 (batch, sequence)."""
        if attention_mask is None:
            return None
        name = self.interface.mask
        if name is None:
            raise TensorError(
                "input 'attention_mask' is given, but the artifact takes none; export it with "
                "padding."
            )
        mask = to_numpy(plain(name, attention_mask))
        if mask.shape != (self.batch, sequence):
            raise TensorError(
                f"input {name!r} has shape {mask.shape}; want {(self.batch, sequence)}, one for "
                f"each new token."
            )
        if mask.dtype.kind not in "iub":
            raise TensorError(f"input {name!r} is {mask.dtype.name}; it must be int64.")
        mask = mask.astype(np.int64)
        check_mask(mask)
        return mask


def _check_size(name: str, count: int | None) -> None:
    """Raises: InputError for what is no whole number of rows or slots."""
    if count is None:
        return
    if isinstance(count, bool) or not isinstance(count, int):
        raise InputError(f"{name}={count!r}: it must be a whole number.")
    if count < 1:
        rule = "a stream has at least one row" if name == "batch" else "a cache has a slot or more"
        raise InputError(f"{name}={count}: {rule}.")


def _leading(interface: "Interface") -> tuple[int, ...]:
    """The sizes of the axes of positions before batch and sequence."""
    if interface.positions is None:
        return ()
    shape = interface.input(interface.positions).shape[:-2]
    return tuple(axis for axis in shape if isinstance(axis, int))


def _capacity(capacity: int | None, only: int | None) -> int:
    """The capacity of a fixed cache. only: the one that the runner can have, if there is one."""
    if only is not None and capacity not in (None, only):
        raise InputError(
            f"capacity={capacity}: the engine was built for a cache of {only}; leave it out, or "
            f"build for other `profiles`."
        )
    capacity = capacity if only is None else only
    if capacity is None:
        raise InputError("capacity is missing: a fixed cache is allocated when it is started.")
    return capacity


def _padded(mask: np.ndarray | None, counts: np.ndarray | None, sequence: int) -> np.ndarray | None:
    """Which of the new tokens are padding, bool (batch, sequence), or nothing if none is.

    mask: of the new tokens. counts: how many of them each row really has.
    """
    padded = None if mask is None else mask == 0
    if counts is not None:
        after = np.arange(sequence) >= counts[:, None]
        padded = after if padded is None else padded | after
    return padded if padded is not None and padded.any() else None

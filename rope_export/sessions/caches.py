"""The caches of a stream: how a call takes them, and what is in them afterwards."""

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from rope_export.arrays import dtype_name, is_torch, like, writable
from rope_export.sessions.slots import clear

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rope_export.arrays import Array
    from rope_export.interface import Interface
    from rope_export.runtimes.base import Prepared, Runner


class Caches(Protocol):
    """What the rows of a stream have cached.

    of_torch: whether they are torch's tensors; None as long as there are none, as before the first
    call, or after a growing cache was reset.
    """

    of_torch: bool | None

    @property
    def tensors(self) -> "dict[str, Array]":
        """The caches by the names of their inputs."""
        ...

    def run(
        self,
        inputs: "dict[str, Array]",
        lengths: np.ndarray,
        new: np.ndarray | None,
        mask: np.ndarray | None,
    ) -> "dict[str, Array]":
        """One call, after which the caches hold its tokens.

        inputs: the new tokens and their positions. lengths: valid slots of each row, int64 (batch).
        new: how many of the tokens each row really has, all of them if none. mask: of the new
        tokens, int64 (batch, sequence), if the interface has one.
        """
        ...

    def shown(self, lengths: np.ndarray) -> np.ndarray:
        """How many of each row's first `lengths` slots the mask shows, int64 (batch)."""
        ...

    def forget(self, first: np.ndarray, last: np.ndarray) -> None:
        """Write zeros into the slots from `first` to before `last` of each row, int64 (batch)."""

    def reset(self, rows: list[int], lengths: np.ndarray) -> None:
        """Empty whole rows; `lengths` are the valid slots of every row until now."""


class GrowingCaches:
    """Caches that are handed on: what one call gives the next one takes. Rows have one length."""

    def __init__(self, interface: "Interface", runner: "Runner", batch: int) -> None:
        self._interface, self._runner, self._batch = interface, runner, batch
        self._pairs = {pair.input: pair.output for pair in interface.caches}
        self._held: dict[str, Any] = {}
        self.of_torch: bool | None = None
        self._mask: np.ndarray | None = None
        self._checked = Checked(interface)

    @property
    def tensors(self) -> "dict[str, Array]":
        return {name: self._runner.array(cache) for name, cache in self._held.items()}

    def run(
        self,
        inputs: "dict[str, Array]",
        lengths: np.ndarray,
        new: np.ndarray | None,
        mask: np.ndarray | None,
    ) -> "dict[str, Array]":
        axes = self._checked.axes(inputs, self._sizes(lengths, inputs))
        if not self._held:
            sizes = {"batch": self._batch, "past": 0}
            self._held = _zeros(self._runner, self._interface, sizes, inputs)
            self.of_torch = is_torch(inputs[self._interface.main_input])
        if mask is not None and self._mask is not None:
            mask = np.concatenate((self._mask, mask), axis=1)
        inputs = _with_mask(self._interface, inputs, mask)
        outputs, self._held = self._runner.follow(inputs, self._held, self._pairs, axes)
        self._mask = mask
        return outputs

    def _sizes(self, lengths: np.ndarray, inputs: "Mapping[str, Array]") -> dict[str, int]:
        past, sequence = int(lengths[0]), inputs[self._interface.main_input].shape[1]
        return {"batch": self._batch, "past": past, "total": past + sequence}

    def shown(self, lengths: np.ndarray) -> np.ndarray:
        if self._mask is None:
            return lengths.copy()
        counts: np.ndarray = self._mask[:, : lengths[0]].sum(axis=1)
        return counts

    def forget(self, first: np.ndarray, last: np.ndarray) -> None:
        """Does nothing: rows have one length, so none is shortened alone."""

    def reset(self, rows: list[int], lengths: np.ndarray) -> None:
        self._held, self.of_torch, self._mask = {}, None, None


class FixedCaches:
    """Caches that are allocated once and written in place. Rows may have different lengths.

    What stays from call to call is bound, and a call of the same form as the last one checked, only
    once: both take as long as a small layer.
    """

    def __init__(self, interface: "Interface", runner: "Runner", batch: int, capacity: int) -> None:
        self._interface, self._runner = interface, runner
        self._covered = interface.covered or "capacity"
        self._sizes = {"batch": batch, "capacity": capacity}
        self.tensors: dict[str, Array] = {}
        self.of_torch: bool | None = None
        self._mask: np.ndarray | None = None
        self._prepared: Prepared | None = None
        self._lengths: Array | None = None
        self._checked = Checked(interface)

    def run(
        self,
        inputs: "dict[str, Array]",
        lengths: np.ndarray,
        new: np.ndarray | None,
        mask: np.ndarray | None,
    ) -> "dict[str, Array]":
        sequence = inputs[self._interface.main_input].shape[1]
        sizes = {**self._sizes, "total": int(lengths.max()) + sequence}
        axes = self._checked.axes(inputs, sizes)
        if mask is not None:
            covered = sizes[self._covered]
            every_slot = self._masked(mask, lengths)[:, :covered]
            inputs = _with_mask(self._interface, inputs, every_slot)
        try:
            outputs = self._call(inputs, lengths, axes)
        except BaseException:  # an interrupt too leaves half a call behind
            self.forget(lengths, lengths + sequence)
            raise
        if new is not None:
            self.forget(lengths + new, lengths + sequence)
            self._show(lengths + new, lengths + sequence)
        return outputs

    def _masked(self, new: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """The mask of every slot after a call whose tokens have the mask `new`. What it has after
        a row's new tokens is seen by none, and written by the next call."""
        if self._mask is None:
            shape = (self._sizes["batch"], self._sizes["capacity"])
            self._mask = np.ones(shape, np.int64)
        for row, values, at in zip(self._mask, new, lengths.tolist(), strict=True):
            row[at : at + new.shape[1]] = values
        return self._mask

    def _show(self, first: np.ndarray, last: np.ndarray) -> None:
        """Let the mask show the slots from `first` to before `last` of each row, which hold
        nothing: they lie where nobody sees them, and a mask of ones is quicker."""
        if self._mask is not None:
            for row, start, after in zip(self._mask, first.tolist(), last.tolist(), strict=True):
                row[start:after] = 1

    def _call(
        self, inputs: "dict[str, Array]", lengths: np.ndarray, axes: "Mapping[str, int]"
    ) -> "dict[str, Array]":
        name = self._interface.lengths
        assert name is not None
        if self._prepared is None or self._lengths is None:
            main = inputs[self._interface.main_input]
            if not self.tensors:
                self.tensors = _zeros(self._runner, self._interface, self._sizes, inputs)
                self.of_torch = is_torch(main)
            with writable(main):
                self._lengths = like(main, lengths.copy())
            into = {pair.output: self.tensors[pair.input] for pair in self._interface.caches}
            self._prepared = self._runner.prepare(self.tensors | {name: self._lengths}, into)
        self._lengths[...] = like(self._lengths, lengths)  # type: ignore[assignment]
        return self._prepared(inputs, axes)

    def shown(self, lengths: np.ndarray) -> np.ndarray:
        if self._mask is None:
            return lengths.copy()
        rows = zip(self._mask, lengths.tolist(), strict=True)
        return np.array([row[:length].sum() for row, length in rows])

    def forget(self, first: np.ndarray, last: np.ndarray) -> None:
        if self.tensors:
            caches = ((self.tensors[pair.input], pair.axis) for pair in self._interface.caches)
            clear(caches, first, last)

    def reset(self, rows: list[int], lengths: np.ndarray) -> None:
        kept = lengths.copy()
        kept[rows] = 0
        self.forget(kept, lengths)
        if self._mask is not None:
            self._mask[rows] = 1


def _with_mask(
    interface: "Interface", inputs: "dict[str, Array]", mask: np.ndarray | None
) -> "dict[str, Array]":
    if mask is None or interface.mask is None:
        return inputs
    return inputs | {interface.mask: like(inputs[interface.main_input], mask)}


def _zeros(
    runner: "Runner",
    interface: "Interface",
    sizes: "Mapping[str, int]",
    inputs: "Mapping[str, Array]",
) -> "dict[str, Array]":
    """Every cache of a stream's first call, all zeros."""
    main = inputs[interface.main_input]
    types = [interface.input(pair.input) for pair in interface.caches]
    with writable(main):
        caches = runner.allocate(types, sizes, main)
    for cache in caches.values():
        cache[...] = 0
    return caches


class Checked:
    """Checks the inputs that a caller gives, and of calls of one form only the first."""

    def __init__(self, interface: "Interface") -> None:
        self._interface = interface
        self._form: object = None
        self._sizes: dict[str, int] = {}

    def axes(
        self, inputs: "Mapping[str, Array]", sizes: "Mapping[str, int]"
    ) -> "Mapping[str, int]":
        """The size of every axis of a call.

        inputs: the new tokens and their positions. sizes: of the axes of all other inputs.
        Raises: TensorError for what does not fit the interface.
        """
        form = [(value.dtype, value.shape) for value in inputs.values()]
        sequence = inputs[self._interface.main_input].shape[1]
        axes = {**sizes, "sequence": sequence}
        if form != self._form:
            others = [t for t in self._interface.inputs if t.name not in inputs]
            every = {t.name: (t.dtype, t.sized(axes)) for t in others}
            every |= {n: (dtype_name(x), tuple(x.shape)) for n, x in inputs.items()}
            self._interface.bind_axes(every)
            self._form = form
        return axes

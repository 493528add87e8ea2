"""The caches of a stream: how a call takes them, and what is in them afterwards."""

from typing import TYPE_CHECKING, Protocol

import numpy as np

from rope_export.arrays import dtype_name, like, writable
from rope_export.runtimes.base import allocate
from rope_export.sessions.slots import clear

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rope_export.arrays import Array
    from rope_export.interface import Interface
    from rope_export.runtimes.base import Prepared, Runner


class Caches(Protocol):
    """What the rows of a stream have cached.

    tensors: the caches by the names of their inputs; none before the first call, nor after a
    growing cache was reset.
    """

    tensors: "dict[str, Array]"

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

    def forget(self, first: np.ndarray, last: np.ndarray) -> None:
        """Write zeros into the slots from `first` to before `last` of each row, int64 (batch)."""

    def reset(self, rows: list[int], lengths: np.ndarray) -> None:
        """Empty whole rows; `lengths` are the valid slots of every row until now."""


class GrowingCaches:
    """Caches that are handed on: what one call gives the next one takes. Rows have one length."""

    def __init__(self, interface: "Interface", runner: "Runner", batch: int) -> None:
        self._interface, self._runner, self._batch = interface, runner, batch
        self.tensors: dict[str, Array] = {}
        self._mask: np.ndarray | None = None

    def run(
        self,
        inputs: "dict[str, Array]",
        lengths: np.ndarray,
        new: np.ndarray | None,
        mask: np.ndarray | None,
    ) -> "dict[str, Array]":
        if not self.tensors:
            sizes = {"batch": self._batch, "past": 0}
            self.tensors = _zeros(self._interface, sizes, inputs)
        if mask is not None and self._mask is not None:
            mask = np.concatenate((self._mask, mask), axis=1)
        every = _with_mask(self._interface, inputs, mask) | self.tensors
        outputs = self._runner.run(every, _axes(self._interface, every), {})
        self.tensors = {pair.input: outputs[pair.output] for pair in self._interface.caches}
        self._mask = mask
        return outputs

    def forget(self, first: np.ndarray, last: np.ndarray) -> None:
        """Does nothing: rows have one length, so none is shortened alone."""

    def reset(self, rows: list[int], lengths: np.ndarray) -> None:
        self.tensors, self._mask = {}, None


class FixedCaches:
    """Caches that are allocated once and written in place. Rows may have different lengths.

    What stays from call to call is bound, and a call of the same form as the last one checked, only
    once: both take as long as a small layer.
    """

    def __init__(self, interface: "Interface", runner: "Runner", batch: int, capacity: int) -> None:
        self._interface, self._runner = interface, runner
        self._sizes = {"batch": batch, "capacity": capacity}
        self.tensors: dict[str, Array] = {}
        self._mask: np.ndarray | None = None
        self._prepared: Prepared | None = None
        self._lengths: Array | None = None
        self._checked: tuple[object, dict[str, int]] = (None, {})

    def run(
        self,
        inputs: "dict[str, Array]",
        lengths: np.ndarray,
        new: np.ndarray | None,
        mask: np.ndarray | None,
    ) -> "dict[str, Array]":
        sequence = inputs[self._interface.main_input].shape[1]
        every_slot = None if mask is None else self._masked(mask, lengths)
        try:
            outputs = self._call(_with_mask(self._interface, inputs, every_slot), lengths)
        except BaseException:  # an interrupt too leaves half a call behind
            self.forget(lengths, lengths + sequence)
            raise
        if new is not None:
            self.forget(lengths + new, lengths + sequence)
        self._mask = every_slot
        return outputs

    def _masked(self, new: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """The mask of every slot after a call whose tokens have the mask `new`."""
        shape = (self._sizes["batch"], self._sizes["capacity"])
        mask = np.ones(shape, np.int64) if self._mask is None else self._mask.copy()
        for row, values, at in zip(mask, new, lengths, strict=True):
            row[at : at + new.shape[1]] = values
        return mask

    def _call(self, inputs: "dict[str, Array]", lengths: np.ndarray) -> "dict[str, Array]":
        name = self._interface.lengths
        assert name is not None
        if self._prepared is None or self._lengths is None:
            main = inputs[self._interface.main_input]
            if not self.tensors:
                self.tensors = _zeros(self._interface, self._sizes, inputs)
            with writable(main):
                self._lengths = like(main, lengths.copy())
            into = {pair.output: self.tensors[pair.input] for pair in self._interface.caches}
            self._prepared = self._runner.prepare(self.tensors | {name: self._lengths}, into)
        form = [(key, value.dtype, value.shape) for key, value in inputs.items()]
        if form != self._checked[0]:
            every = inputs | self.tensors | {name: self._lengths}
            self._checked = (form, _axes(self._interface, every))
        self._lengths[...] = like(self._lengths, lengths)  # type: ignore[assignment]
        return self._prepared(inputs, self._checked[1])

    def forget(self, first: np.ndarray, last: np.ndarray) -> None:
        for pair in self._interface.caches:
            if pair.input in self.tensors:
                clear(self.tensors[pair.input], pair.axis, first, last)

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
    interface: "Interface", sizes: "Mapping[str, int]", inputs: "Mapping[str, Array]"
) -> "dict[str, Array]":
    """Every cache of a stream's first call, all zeros."""
    main = inputs[interface.main_input]
    types = [interface.input(pair.input) for pair in interface.caches]
    with writable(main):
        caches = allocate(types, sizes, main)
    for cache in caches.values():
        cache[...] = 0
    return caches


def _axes(interface: "Interface", inputs: "Mapping[str, Array]") -> dict[str, int]:
    return interface.bind_axes({n: (dtype_name(x), x.shape) for n, x in inputs.items()})

"""The tensors of an artifact: their names, dtypes and symbolic shapes, and which are one cache."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rope_export.errors import TensorError

TOTAL = "past + sequence"
"""Cache slots after a call; the axis called "total" has as many."""

SLOTS = ("past", "capacity")
"""The axis of slots of an input that is a cache: of a growing one, and of a fixed one."""

LENGTHS = "cache_lengths"
"""The input with the number of valid slots of each row of a fixed cache."""

MASK = "attention_mask"
"""The input that is 0 for the slots that are padding."""

POSITIONS = "position_ids"
"""The input with the position of each new token."""

DTYPES = ("float32", "float16", "bfloat16", "float64", "int64", "int32", "uint8", "bool")
"""The dtypes that inputs and outputs may have."""


@dataclass(frozen=True, kw_only=True)
class TensorType:
    """A tensor's name, dtype and shape; an axis is a size, the name of a dynamic one, or a sum.

    Raises: ValueError for a dtype that no tensor has.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype={self.dtype!r}: use one of {', '.join(DTYPES)}")

    def sized(self, axes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape with its dynamic axes filled in."""
        return tuple(
            axis if isinstance(axis, int) else sum(axes[term] for term in axis.split(" + "))
            for axis in self.shape
        )

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}({', '.join(map(str, self.shape))})"


@dataclass(frozen=True, kw_only=True)
class CachePair:
    """An input and an output that are one cache, before and after a call.

    axis: of both, on which the slots lie; axis 0 is the batch.
    """

    input: str
    output: str
    axis: int


@dataclass(frozen=True, kw_only=True)
class Interface:
    """The inputs and outputs of a call, and what each is for.

    main_input: holds the new tokens, (batch, sequence, ...). main_output: their results. caches:
    which input and output are one cache. positions, lengths, mask: names of inputs, if it has such:
    the tokens' positions; the number of valid slots of each row of a fixed cache; 1 for each slot
    that may be attended to. optional: inputs that a call may leave out; without the lengths, every
    row holds what the mask covers before the new tokens. positions_count: what positions that are
    left out count, the row's slots or those of them that the mask shows.
    Raises: ValueError if a name is not among the tensors, or a cache has no axis of slots.
    """

    inputs: tuple[TensorType, ...]
    outputs: tuple[TensorType, ...]
    caches: tuple[CachePair, ...]
    main_input: str
    main_output: str
    positions: str | None = None
    lengths: str | None = None
    mask: str | None = None
    optional: tuple[str, ...] = ()
    positions_count: Literal["slots", "mask"] = "slots"

    def __post_init__(self) -> None:
        for tensors in (self.inputs, self.outputs):
            _check_different([tensor.name for tensor in tensors])
        if self.input(self.main_input).shape[:2] != ("batch", "sequence"):
            raise ValueError(f"{self.input(self.main_input)} must begin with batch and sequence")
        self.output(self.main_output)
        numbers = [name for name in (self.positions, self.lengths, self.mask) if name is not None]
        _check_different([self.main_input, *numbers, *(pair.input for pair in self.caches)])
        _check_different([self.main_output, *(pair.output for pair in self.caches)])
        for name in numbers:
            if self.input(name).dtype != "int64" or "batch" not in self.input(name).shape:
                raise ValueError(f"{self.input(name)} must be int64 with an axis batch")
        for name in self.optional:
            if self.input(name).name != self.lengths:
                raise ValueError(f"{name} may not be left out; of a call, only the lengths may")
        self._check_caches()
        input_axes = {"past", "total", *(axis for tensor in self.inputs for axis in tensor.shape)}
        for tensor in self.outputs:
            for axis in tensor.shape:
                if isinstance(axis, str) and not input_axes.issuperset(axis.split(" + ")):
                    raise ValueError(f"axis {axis!r} of {tensor} is of no input")

    def _check_caches(self) -> None:
        for pair in self.caches:
            shape, axis = self.input(pair.input).shape, pair.axis
            if len(self.output(pair.output).shape) != len(shape):
                raise ValueError(f"{pair.input} and {pair.output} are no cache: unlike shapes")
            if not (0 < axis < len(shape) and shape[0] == "batch" and shape[axis] in SLOTS):
                raise ValueError(f"axis {axis} of {self.input(pair.input)} has no slots")
        if len({self._slots(pair) for pair in self.caches}) > 1:
            raise ValueError("some caches are growing and some are fixed")
        if (self.cache == "fixed") != (self.lengths is not None):
            raise ValueError("a fixed cache, and no other, has an input with its rows' lengths")
        if self.lengths is not None and self.input(self.lengths).shape != ("batch",):
            raise ValueError(f"{self.input(self.lengths)} must have the shape (batch)")

    def input(self, name: str) -> TensorType:
        """The input called `name`. Raises: ValueError if there is none."""
        return named(name, self.inputs, "inputs")

    def output(self, name: str) -> TensorType:
        """The output called `name`. Raises: ValueError if there is none."""
        return named(name, self.outputs, "outputs")

    def _slots(self, pair: CachePair) -> int | str:
        return self.input(pair.input).shape[pair.axis]

    @property
    def cache(self) -> Literal["none", "growing", "fixed"]:
        """The kind of the caches."""
        if not self.caches:
            return "none"
        return "growing" if self._slots(self.caches[0]) == "past" else "fixed"

    @property
    def covered(self) -> str | None:
        """The axis of the mask on which the slots lie, if there is a mask."""
        return None if self.mask is None else str(self.input(self.mask).shape[1])

    def check_lengths(self, lengths: Sequence[int], sequence: int, capacity: int) -> None:
        """Raises: TensorError if a row of a fixed cache has no room for `sequence` more slots."""
        for row, length in enumerate(lengths):
            if length < 0:
                raise TensorError(
                    f"{self.lengths or 'length'}[{row}] = {length}: a cache holds 0 entries or "
                    f"more."
                )
            if length + sequence > capacity:
                raise TensorError(
                    f"row {row} of the cache is full: {length} entries and {sequence} new ones, "
                    f"capacity {capacity}. Start with a larger capacity, or reset the row."
                )

    def check_covered(self, lengths: Sequence[int], sequence: int, total: int) -> None:
        """Raises: TensorError if the mask of a fixed cache ends before a row's new slots do."""
        for row, length in enumerate(lengths):
            if length + sequence > total:
                raise TensorError(
                    f"input {self.mask!r} covers {total} slots; row {row} has {length} entries and "
                    f"{sequence} new ones, so it must cover {length + sequence} at least."
                )

    def bind_axes(self, tensors: Mapping[str, tuple[str, Sequence[int]]]) -> dict[str, int]:
        """The sizes of the dynamic axes of a call, after checking names, dtypes and shapes.

        tensors: dtype and shape of each by name.
        Raises: TensorError naming the tensor, what it is and what it should be.
        """
        names = [tensor.name for tensor in self.inputs]
        every = ", ".join(names)
        for name in names:
            if name not in tensors and name not in self.optional:
                raise TensorError(f"input {name!r} is missing; the artifact takes {every}.")
        for name in tensors:
            if name not in names:
                raise TensorError(f"input {name!r} is unknown; the artifact takes {every}.")
        axes: dict[str, int] = {}
        for expected in self.inputs:
            if expected.name in tensors:
                _bind(axes, expected, *tensors[expected.name])
        for axis in ("batch", "sequence"):
            if axes[axis] < 1:
                raise TensorError(f"{axis} = {axes[axis]}: there must be at least one.")
        if "capacity" in axes:
            self._check_total(axes)
            return axes
        total = axes.setdefault("past", 0) + axes["sequence"]
        if axes.setdefault("total", total) != total:
            raise TensorError(
                f"input {self.mask!r} covers {axes['total']} slots; past + sequence is {total}."
            )
        return axes

    def _check_total(self, axes: Mapping[str, int]) -> None:
        """Raises: TensorError if a mask with an axis of its own covers too few slots of a fixed
        cache, or more than there are."""
        total = axes.get("total")
        if total is not None and not axes["sequence"] <= total <= axes["capacity"]:
            raise TensorError(
                f"input {self.mask!r} covers {total} slots; it must cover the {axes['sequence']} "
                f"new ones at least, and at most the capacity, {axes['capacity']}."
            )


def _check_different(names: Sequence[str]) -> None:
    """Raises: ValueError if a name is there twice."""
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name!r} is there twice among {', '.join(names)}")


def named(name: str, tensors: Sequence[TensorType], what: str) -> TensorType:
    """The tensor called `name`. Raises: ValueError if none is; what: the tensors are called."""
    for tensor in tensors:
        if tensor.name == name:
            return tensor
    raise ValueError(f"{name!r} is not among the {what} {', '.join(t.name for t in tensors)}")


def _bind(axes: dict[str, int], expected: TensorType, dtype: str, shape: Sequence[int]) -> None:
    """Add the axes of one tensor to `axes`, whose sizes it must agree with."""
    name = expected.name
    if dtype != expected.dtype:
        raise TensorError(f"input {name!r} is {dtype}; it must be {expected.dtype}.")
    if len(shape) != len(expected.shape):
        raise TensorError(f"input {name!r} has shape {tuple(shape)}; want {expected}.")
    for axis, size in zip(expected.shape, shape, strict=True):
        expected_size = axis if isinstance(axis, int) else axes.setdefault(axis, size)
        if size != expected_size:
            raise TensorError(
                f"input {name!r} has shape {tuple(shape)}; want {expected}"
                + ("." if isinstance(axis, int) else f" with {axis} = {expected_size}.")
            )

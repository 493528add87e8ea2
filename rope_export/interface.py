"""The tensors of an artifact: their names, dtypes and symbolic shapes, and which are one cache."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rope_export.errors import TensorError
from rope_export.spec import AttentionSpec

TOTAL = "past + sequence"
"""Cache slots after a call; the axis called "total" has as many."""

SLOTS = ("past", "capacity")
"""The axis of slots of an input that is a cache: of a growing one, and of a fixed one."""

LENGTHS = "cache_lengths"
"""An attention layer's input with the number of valid slots of each row of a fixed cache."""

MASK = "attention_mask"
"""An attention layer's input that is 0 for the slots that are padding."""


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
    that may be attended to.
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
        return _named(name, self.inputs, "inputs")

    def output(self, name: str) -> TensorType:
        """The output called `name`. Raises: ValueError if there is none."""
        return _named(name, self.outputs, "outputs")

    def _slots(self, pair: CachePair) -> int | str:
        return self.input(pair.input).shape[pair.axis]

    @property
    def cache(self) -> Literal["none", "growing", "fixed"]:
        """The kind of the caches."""
        if not self.caches:
            return "none"
        return "growing" if self._slots(self.caches[0]) == "past" else "fixed"

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

    def bind_axes(self, tensors: Mapping[str, tuple[str, Sequence[int]]]) -> dict[str, int]:
        """The sizes of the dynamic axes of a call, after checking names, dtypes and shapes.

        tensors: dtype and shape of each by name.
        Raises: TensorError naming the tensor, what it is and what it should be.
        """
        names = [tensor.name for tensor in self.inputs]
        every = ", ".join(names)
        for name in names:
            if name not in tensors:
                raise TensorError(f"input {name!r} is missing; the artifact takes {every}.")
        for name in tensors:
            if name not in names:
                raise TensorError(f"input {name!r} is unknown; the artifact takes {every}.")
        axes: dict[str, int] = {}
        for expected in self.inputs:
            _bind(axes, expected, *tensors[expected.name])
        for axis in ("batch", "sequence"):
            if axes[axis] < 1:
                raise TensorError(f"{axis} = {axes[axis]}: there must be at least one.")
        if "capacity" in axes:
            return axes
        total = axes.setdefault("past", 0) + axes["sequence"]
        if axes.setdefault("total", total) != total:
            raise TensorError(
                f"input {self.mask!r} covers {axes['total']} slots; past + sequence is {total}."
            )
        return axes


def _check_different(names: Sequence[str]) -> None:
    """Raises: ValueError if a name is there twice."""
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name!r} is there twice among {', '.join(names)}")


def _named(name: str, tensors: Sequence[TensorType], what: str) -> TensorType:
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


def attention_interface(spec: AttentionSpec, *, cache: str, padding: bool) -> Interface:
    """The interface of an attention artifact.

    A layer on which positions have no effect takes none: every input is honoured.
    """
    return attention_roles(*_attention_tensors(spec, cache=cache, padding=padding))


def attention_roles(inputs: Sequence[TensorType], outputs: Sequence[TensorType]) -> Interface:
    """The interface of the tensors of an attention artifact, by the names that those have.

    Raises: ValueError for tensors that are not an attention artifact's.
    """
    names = [tensor.name for tensor in inputs]
    pairs = (cache_names(name, kind) for kind in ("growing", "fixed") for name in CACHED)
    roles = {"positions": "position_ids", "lengths": LENGTHS, "mask": MASK}
    return Interface(
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        caches=tuple(
            CachePair(input=before, output=after, axis=_slots_axis(_named(before, inputs, "")))
            for before, after in pairs
            if before in names
        ),
        main_input="hidden_states",
        main_output="attention_output",
        **{role: name if name in names else None for role, name in roles.items()},
    )


def _slots_axis(tensor: TensorType) -> int:
    return next((at for at, axis in enumerate(tensor.shape) if axis in SLOTS), 0)


CACHED = ("key", "value", "latent", "key_rope")
"""Names of what attention layers cache, as they stand in the names of inputs and outputs."""


def _attention_tensors(
    spec: AttentionSpec, *, cache: str, padding: bool
) -> tuple[tuple[TensorType, ...], tuple[TensorType, ...]]:
    """Inputs and outputs of an attention artifact, in order."""
    hidden = ("batch", "sequence", spec.hidden_size)
    inputs = [TensorType(name="hidden_states", dtype=spec.dtype, shape=hidden)]
    outputs = [TensorType(name="attention_output", dtype=spec.dtype, shape=hidden)]
    if spec.uses_positions:
        axes = () if spec.rope is None or spec.rope.axes == 1 else (spec.rope.axes,)
        shape = (*axes, "batch", "sequence")
        inputs.append(TensorType(name="position_ids", dtype="int64", shape=shape))
    if cache != "none":
        before, after = ("past", TOTAL) if cache == "growing" else ("capacity", "capacity")
        for name, slots in cached(spec).items():
            past, present = (
                tuple(axis if x == "slots" else x for x in slots) for axis in (before, after)
            )
            cache_input, cache_output = cache_names(name, cache)
            inputs.append(TensorType(name=cache_input, dtype=spec.dtype, shape=past))
            outputs.append(TensorType(name=cache_output, dtype=spec.dtype, shape=present))
    if cache == "fixed":
        inputs.append(TensorType(name=LENGTHS, dtype="int64", shape=("batch",)))
    if padding:
        covered = "capacity" if cache == "fixed" else "total"
        inputs.append(TensorType(name=MASK, dtype="int64", shape=("batch", covered)))
    return tuple(inputs), tuple(outputs)


def cache_names(name: str, cache: str) -> tuple[str, str]:
    """The names of the input and the output that hold `name` in a growing or a fixed cache."""
    if cache == "fixed":
        return f"{name}_cache", f"{name}_cache_out"
    return f"past_{name}", f"present_{name}"


def cached(spec: AttentionSpec) -> dict[str, tuple[int | str, ...]]:
    """The shapes of what the layer caches, with an axis "slots", by the names of CACHED."""
    if spec.latent is None:
        return {
            "key": ("batch", spec.kv_heads, "slots", spec.head_dim),
            "value": ("batch", spec.kv_heads, "slots", spec.value_head_dim),
        }
    return {
        "latent": ("batch", "slots", spec.latent.kv_rank),
        "key_rope": ("batch", "slots", spec.latent.rope_dim),
    }

"""The tensors of an artifact: their names, dtypes and symbolic shapes, and checks against them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rope_export.errors import TensorError
from rope_export.spec import AttentionSpec

TOTAL = "past + sequence"
"""Cache slots after a call; the axis called "total" has as many."""

LENGTHS = "cache_lengths"
"""The input that says how many entries of a fixed cache are in use, row by row."""

MASK = "attention_mask"
"""The input that says which slots are padding."""


@dataclass(frozen=True, kw_only=True)
class TensorType:
    """A tensor's name, dtype and shape; an axis is a size, the name of a dynamic one, or a sum."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> "TensorType":
        return cls(name=facts["name"], dtype=facts["dtype"], shape=tuple(facts["shape"]))

    def sized(self, axes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape with its dynamic axes filled in."""
        return tuple(
            axis if isinstance(axis, int) else sum(axes[term] for term in axis.split(" + "))
            for axis in self.shape
        )

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}({', '.join(map(str, self.shape))})"


def attention_tensors(
    spec: AttentionSpec, *, cache: str, padding: bool
) -> tuple[tuple[TensorType, ...], tuple[TensorType, ...]]:
    """Inputs and outputs of an attention artifact, in order.

    A layer on which positions have no effect takes none: an input is honoured or not there.
    """
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
            taken, given = cache_names(name, cache)
            inputs.append(TensorType(name=taken, dtype=spec.dtype, shape=past))
            outputs.append(TensorType(name=given, dtype=spec.dtype, shape=present))
    if cache == "fixed":
        inputs.append(TensorType(name=LENGTHS, dtype="int64", shape=("batch",)))
    if padding:
        covered = "capacity" if cache == "fixed" else "total"
        inputs.append(TensorType(name=MASK, dtype="int64", shape=("batch", covered)))
    return tuple(inputs), tuple(outputs)


def cache_names(name: str, cache: str) -> tuple[str, str]:
    """What the input and the output are called that hold `name` of a growing or fixed cache."""
    if cache == "fixed":
        return f"{name}_cache", f"{name}_cache_out"
    return f"past_{name}", f"present_{name}"


def cached(spec: AttentionSpec) -> dict[str, tuple[int | str, ...]]:
    """What the layer caches, by the names after past_ and present_, with shapes in "slots"."""
    if spec.latent is None:
        return {
            "key": ("batch", spec.kv_heads, "slots", spec.head_dim),
            "value": ("batch", spec.kv_heads, "slots", spec.value_head_dim),
        }
    return {
        "latent": ("batch", "slots", spec.latent.kv_rank),
        "key_rope": ("batch", "slots", spec.latent.rope_dim),
    }


def cache_inputs(inputs: Sequence[TensorType]) -> list[str]:
    """Names of those inputs that hold a cache."""
    slots = ("past", "capacity")
    return [t.name for t in inputs if t.name != MASK and any(axis in slots for axis in t.shape)]


def check_lengths(lengths: Sequence[int], sequence: int, capacity: int) -> None:
    """Raises: TensorError if a row of a fixed cache has no room for `sequence` more entries."""
    for row, length in enumerate(lengths):
        if length < 0:
            raise TensorError(f"{LENGTHS}[{row}] = {length}: a cache holds 0 entries or more.")
        if length + sequence > capacity:
            raise TensorError(
                f"row {row} of the cache is full: {length} entries and {sequence} new ones, "
                f"capacity {capacity}. Start with a larger capacity, or reset the row."
            )


def bind_axes(
    types: Sequence[TensorType], given: Mapping[str, tuple[str, Sequence[int]]]
) -> dict[str, int]:
    """The sizes of the dynamic axes of a call, after checking names, dtypes and shapes.

    given: dtype and shape of each tensor by name.
    Raises: TensorError naming the tensor, what it is and what it should be.
    """
    names = [t.name for t in types]
    for name in names:
        if name not in given:
            raise TensorError(f"input {name!r} is missing; the artifact takes {', '.join(names)}.")
    for name in given:
        if name not in names:
            raise TensorError(f"input {name!r} is unknown; the artifact takes {', '.join(names)}.")
    axes: dict[str, int] = {}
    for expected in types:
        dtype, shape = given[expected.name]
        if dtype != expected.dtype:
            raise TensorError(f"input {expected.name!r} is {dtype}; it must be {expected.dtype}.")
        if len(shape) != len(expected.shape):
            raise TensorError(f"input {expected.name!r} has shape {tuple(shape)}; want {expected}.")
        for axis, size in zip(expected.shape, shape, strict=True):
            wanted = axis if isinstance(axis, int) else axes.setdefault(axis, size)
            if size != wanted:
                raise TensorError(
                    f"input {expected.name!r} has shape {tuple(shape)}; want {expected}"
                    + ("." if isinstance(axis, int) else f" with {axis} = {wanted}.")
                )
    for axis in ("batch", "sequence"):
        if axes[axis] < 1:
            raise TensorError(f"{axis} = {axes[axis]}: there must be at least one.")
    if "capacity" in axes:
        return axes
    axes.setdefault("past", 0)
    total = axes["past"] + axes["sequence"]
    if axes.setdefault("total", total) != total:
        raise TensorError(
            f"input 'attention_mask' covers {axes['total']} slots; past + sequence is {total}."
        )
    return axes

"""The interface of an attention layer's artifact."""

from collections.abc import Sequence

from rope_export.interface.base import (
    LENGTHS,
    MASK,
    POSITIONS,
    SLOTS,
    TOTAL,
    CachePair,
    Interface,
    TensorType,
    named,
)
from rope_export.spec import AttentionSpec


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
    return Interface(
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        caches=tuple(
            CachePair(input=before, output=after, axis=_slots_axis(named(before, inputs, "")))
            for before, after in pairs
            if before in names
        ),
        main_input="hidden_states",
        main_output="attention_output",
        positions=_if_there(POSITIONS, names),
        lengths=_if_there(LENGTHS, names),
        mask=_if_there(MASK, names),
    )


def _if_there(name: str, names: Sequence[str]) -> str | None:
    return name if name in names else None


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
        inputs.append(TensorType(name=POSITIONS, dtype="int64", shape=shape))
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

"""The interface of a decoder's artifact: the names that the clients of decoders know."""

from collections.abc import Mapping
from typing import Literal

from rope_export.interface.attention import cached
from rope_export.interface.base import (
    LENGTHS,
    MASK,
    POSITIONS,
    TOTAL,
    CachePair,
    Interface,
    TensorType,
)
from rope_export.spec import AttentionSpec


def decoder_interface(
    specs: Mapping[int, AttentionSpec],
    *,
    vocabulary: int,
    cache: Literal["growing", "fixed"],
    logits: Literal["last", "all"],
    dtype: str,
    static_mask: bool = False,
    padding: bool = True,
) -> Interface:
    """The interface of a whole decoder.

    specs: of the layers that have a cache of their own, by the layer's index. logits: of each row's
    last new token, whose axis is then 1, or of all of them. dtype: of caches and logits.
    static_mask: the mask of a fixed cache covers its capacity, and the lengths are always taken;
    without, it covers `total` slots, max(lengths) + sequence or more, and the lengths may be left
    out. padding: whether tokens may be padding, or be at other positions than their slots; without,
    no positions are taken, and the mask is there for its width.
    Raises: ValueError if no layer has a cache.
    """
    if not specs:
        raise ValueError("no layer has a cache; a decoder has one at least")
    fixed = cache == "fixed"
    before, after = ("capacity", "capacity") if fixed else ("past", TOTAL)
    shapes = {
        f"{index}.{name}": shape
        for index, spec in sorted(specs.items())
        for name, shape in layer_cache(spec).items()
    }

    def tensors(prefix: str, slots: str) -> tuple[TensorType, ...]:
        return tuple(
            TensorType(name=f"{prefix}.{name}", dtype=dtype, shape=_with(shape, slots))
            for name, shape in shapes.items()
        )

    covered = "capacity" if fixed and static_mask else "total"
    tokens = ("batch", "sequence")
    numbers = {"input_ids": tokens, MASK: ("batch", covered)}
    numbers |= {POSITIONS: tokens} if padding else {}
    lengths = (TensorType(name=LENGTHS, dtype="int64", shape=("batch",)),) if fixed else ()
    results = ("batch", 1 if logits == "last" else "sequence", vocabulary)
    return Interface(
        inputs=(
            *(TensorType(name=name, dtype="int64", shape=s) for name, s in numbers.items()),
            *tensors("past_key_values", before),
            *lengths,
        ),
        outputs=(
            TensorType(name="logits", dtype=dtype, shape=results),
            *tensors("present", after),
        ),
        caches=tuple(
            CachePair(input=f"past_key_values.{name}", output=f"present.{name}", axis=2)
            for name in shapes
        ),
        main_input="input_ids",
        main_output="logits",
        positions=POSITIONS if padding else None,
        lengths=LENGTHS if fixed else None,
        mask=MASK,
        optional=(LENGTHS,) if fixed and not static_mask else (),
        positions_count="mask" if padding else "slots",
    )


def layer_cache(spec: AttentionSpec) -> dict[str, tuple[int | str, ...]]:
    """The shapes of what one layer of a decoder caches, with an axis "slots", by "key" and "value".

    MLA (multi-head latent attention) caches the compressed entries as the key and the rotated part
    as the value, with one head, as transformers does.
    """
    if spec.latent is None:
        return cached(spec)
    return {
        "key": ("batch", 1, "slots", spec.latent.kv_rank),
        "value": ("batch", 1, "slots", spec.latent.rope_dim),
    }


def _with(shape: tuple[int | str, ...], slots: str) -> tuple[int | str, ...]:
    return tuple(slots if axis == "slots" else axis for axis in shape)

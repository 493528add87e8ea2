"""Interfaces with other names than an attention layer's."""

from rope_export.interface import TOTAL, CachePair, Interface, TensorType


def decoder_interface(cache: str, *, layers: int = 2, axis: int = 2) -> Interface:
    """A decoder's, with the names of transformers' exports: past_key_values.N.key, present.N.key.

    axis: on which the slots of each cache lie, of (batch, 2, slots, 4) with the slots moved there.
    """
    given = "past" if cache == "growing" else "capacity"
    after = TOTAL if cache == "growing" else "capacity"

    def tensor(name: str, slots: str) -> TensorType:
        shape: list[int | str] = ["batch", 2, 4]
        shape.insert(axis, slots)
        return TensorType(name=name, dtype="float32", shape=tuple(shape))

    names = [f"{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
    mask_axis = "total" if cache == "growing" else "capacity"
    fixed = [TensorType(name="cache_lengths", dtype="int64", shape=("batch",))]
    return Interface(
        inputs=(
            TensorType(name="input_ids", dtype="int64", shape=("batch", "sequence")),
            TensorType(name="attention_mask", dtype="int64", shape=("batch", mask_axis)),
            TensorType(name="position_ids", dtype="int64", shape=("batch", "sequence")),
            *(tensor(f"past_key_values.{name}", given) for name in names),
            *(fixed if cache == "fixed" else ()),
        ),
        outputs=(
            TensorType(name="logits", dtype="float32", shape=("batch", "sequence", 8)),
            *(tensor(f"present.{name}", after) for name in names),
        ),
        caches=tuple(
            CachePair(input=f"past_key_values.{name}", output=f"present.{name}", axis=axis)
            for name in names
        ),
        main_input="input_ids",
        main_output="logits",
        positions="position_ids",
        lengths="cache_lengths" if cache == "fixed" else None,
        mask="attention_mask",
    )

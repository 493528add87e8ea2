"""What is true of a decoder in a file that somebody else made, as a manifest has it of ours."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rope_export.artifacts.manifest import File, Weight
from rope_export.errors import UnavailableError
from rope_export.interface import LENGTHS, TOTAL, CachePair, Interface, TensorType
from rope_export.interface.decoder import layer_cache
from rope_export.parity.bounds import UNIT_ROUNDOFF
from rope_export.parity.onnx_file.file import OnnxFile, Value
from rope_export.parity.onnx_file.names import Matched
from rope_export.quantization import Quantization
from rope_export.spec import AttentionSpec


@dataclass(frozen=True, kw_only=True)
class FileFacts:
    """As in `DecoderManifest`. layers: of each layer the place of its spec in the source."""

    interface: Interface
    dtype: str
    source: Mapping[str, Any]
    layers: tuple[int, ...]
    vocabulary: int | None
    logits: Literal["last", "all"]
    lowering: str = "none of ours"
    runtimes: tuple[str, ...] = ("onnxruntime",)
    positions: int | None = None
    first_position: int | None = None
    padding: bool = True
    quantization: Quantization | None = None
    stale_slots: Literal["any", "finite"] = "any"
    weights: Mapping[str, Weight] = field(default_factory=dict)
    files: Mapping[str, File] = field(default_factory=dict)
    needs: Mapping[str, str] = field(default_factory=dict)

    @property
    def cache(self) -> str:
        return self.interface.cache

    @property
    def inputs(self) -> tuple[TensorType, ...]:
        return self.interface.inputs

    @property
    def outputs(self) -> tuple[TensorType, ...]:
        return self.interface.outputs


def cache_shapes(specs: Sequence[AttentionSpec]) -> dict[str, tuple[int | str, ...]]:
    """The shape of every cache by its name, such as "0.key"."""
    return {
        f"{index}.{name}": shape
        for index, spec in enumerate(specs)
        for name, shape in layer_cache(spec).items()
    }


def file_interface(
    matched: Matched,
    shapes: Mapping[str, tuple[int | str, ...]],
    vocabulary: int,
    logits: Literal["last", "all"],
) -> Interface:
    """The file's tensors under our names, in our layouts; with fixed caches the lengths are among
    them, of which the file's own inputs are made."""
    tokens, covered = ("batch", "sequence"), "capacity" if matched.whole_mask else "total"
    numbers = {"input_ids": tokens, "attention_mask": ("batch", covered), "position_ids": tokens}
    before, after = ("capacity", "capacity") if matched.fixed else ("past", TOTAL)
    lengths = (TensorType(name=LENGTHS, dtype="int64", shape=("batch",)),) if matched.fixed else ()
    taken = [name for name in numbers if name in matched.inputs]
    results = ("batch", 1 if logits == "last" else "sequence", vocabulary)

    def caches(prefix: str, slots: str) -> tuple[TensorType, ...]:
        return tuple(
            TensorType(
                name=f"{prefix}.{name}",
                dtype=cache.before.dtype,
                shape=tuple(slots if axis == "slots" else axis for axis in shapes[name]),
            )
            for name, cache in matched.caches.items()
        )

    return Interface(
        inputs=(
            *(TensorType(name=name, dtype="int64", shape=numbers[name]) for name in taken),
            *caches("past_key_values", before),
            *lengths,
        ),
        outputs=(
            TensorType(name="logits", dtype=matched.logits.dtype, shape=results),
            *caches("present", after),
        ),
        caches=tuple(
            CachePair(input=f"past_key_values.{name}", output=f"present.{name}", axis=2)
            for name in matched.caches
        ),
        main_input="input_ids",
        main_output="logits",
        positions="position_ids" if "position_ids" in taken else None,
        lengths=LENGTHS if matched.fixed else None,
        mask="attention_mask" if "attention_mask" in taken else None,
        positions_count="mask",
    )


def file_dtype(file: OnnxFile, matched: Matched) -> str:
    """The dtype that the file computes in: that of its caches, or of its logits.

    Raises: UnavailableError for one that rounding has no bounds for.
    """
    values: list[Value] = [x.before for x in matched.caches.values()] or [matched.logits]
    return bounded_dtype(file, values[0])


def bounded_dtype(file: OnnxFile, value: Value) -> str:
    """The dtype of a tensor. Raises: UnavailableError for one that rounding has no bounds for."""
    if value.dtype not in UNIT_ROUNDOFF:
        raise UnavailableError(
            f"{file.path}: computes in {value.dtype}; use one of {', '.join(UNIT_ROUNDOFF)}."
        )
    return value.dtype

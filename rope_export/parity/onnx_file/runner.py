"""Runs a file by our names: what a call has is brought into the form that the file takes."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from rope_export.arrays import numpy_dtype, to_numpy
from rope_export.errors import ArtifactError, ProfileError, RopeExportError, UnavailableError
from rope_export.interface import LENGTHS
from rope_export.parity.onnx_file.caches import FLAT, HEADS_FIRST, SLOTS_FIRST, Cache, Taken
from rope_export.parity.onnx_file.file import OnnxFile, Value
from rope_export.parity.onnx_file.int8 import EXACT
from rope_export.parity.onnx_file.names import Matched
from rope_export.runtimes import Runner, find_runtime
from rope_export.runtimes.base import written
from rope_export.runtimes.onnxruntime import IN_MEMORY, OnnxRuntime, first_line, value_of

if TYPE_CHECKING:
    from rope_export.arrays import Array

Arrays = dict[str, np.ndarray]

FATAL = 4
"""onnxruntime's log severity."""

STALE = 100.0
"""What lies in slots of a fixed cache that a call has none of, as in those that are not valid."""


def start(file: OnnxFile, runtime: str, threads: int | None = None, *, exact: bool = True) -> Any:
    """onnxruntime's session of the file, on one of its providers.

    threads: that a call may use; all cores unless given. exact: whether weights of DequantizeLinear
    are multiplied with what is not rounded.
    Raises: UnavailableError for another runtime, or one that is not here; ArtifactError if
        onnxruntime refuses the file.
    """
    chosen = find_runtime(runtime)
    if type(chosen) is not OnnxRuntime:
        raise UnavailableError("a file that others made is run by onnxruntime alone")
    reason = chosen.unavailable()
    if reason is not None:
        raise UnavailableError(reason)
    options = chosen.options()
    options.log_severity_level = FATAL  # calls that fail are told by their rows
    if threads is not None:
        options.intra_op_num_threads = threads
    if exact:
        options.add_session_config_entry(*EXACT)
    if file.data:
        names, buffers = list(file.data), list(file.data.values())
        getattr(options, IN_MEMORY)(names, buffers, [len(x) for x in buffers])
    try:
        return chosen.start(file.model, options)
    except Exception as error:  # onnxruntime's own kinds derive from Exception alone
        reason = first_line(error)
        raise ArtifactError(f"{file.path}: onnxruntime refuses it: {reason}") from error


class FileRunner(Runner):
    """Calls with our inputs; see `Matched`. heads: of each cache. shared: whether each cache is
    given as one buffer for its input and its output, which the file writes in place."""

    def __init__(
        self, inner: Any, matched: Matched, heads: Mapping[str, Any], *, shared: bool = False
    ) -> None:
        self.inner, self._matched, self._heads = inner, matched, heads
        self._shared = shared

    @property
    def sizes(self) -> tuple[int | None, int | None]:
        """Batch and sequence, where the file always has the same."""
        return self._matched.inputs["input_ids"].sizes

    def run(
        self, inputs: "Mapping[str, Array]", axes: Mapping[str, int], into: "Mapping[str, Array]"
    ) -> "dict[str, Array]":
        """Raises: ProfileError for a call that the file's inputs do not take."""
        if self.inner is None:
            raise RopeExportError("the session is closed.")
        values = {name: to_numpy(x) for name, x in inputs.items()}
        matched = self._matched
        check_caches(matched, values, axes)
        check_sizes(matched.inputs["input_ids"], axes)
        feeds = {
            value.name: number(name, value, values, axes, matched.mask_slots)
            for name, value in matched.inputs.items()
        }
        caches = {
            cache.before.name: given(cache, values[f"past_key_values.{name}"])
            for name, cache in matched.caches.items()
        }
        names = {"logits": matched.logits.name}
        names |= {f"present.{name}": x.after.name for name, x in matched.caches.items()}
        try:
            if self._shared:
                results = self._in_place(feeds, caches, list(names.values()))
            else:
                results = self.inner.run(list(names.values()), feeds | caches)
        except Exception as error:
            raise RopeExportError(f"onnxruntime failed: {first_line(error)}") from error
        outputs: dict[str, Any] = dict(zip(names, results, strict=True))
        if outputs["logits"].ndim == 2:
            outputs["logits"] = outputs["logits"][:, None]
        for name, cache in matched.caches.items():
            key = f"present.{name}"
            outputs[key] = returned(cache, outputs[key], self._heads[name], axes)
        return written(outputs, into)

    def _in_place(self, feeds: Arrays, caches: Arrays, names: list[str]) -> list[np.ndarray]:
        binding = self.inner.io_binding()
        for name, value in feeds.items():
            binding.bind_cpu_input(name, value)
        after = {x.after.name: x.before.name for x in self._matched.caches.values()}
        buffers = {name: value_of(x.copy()) for name, x in caches.items()}
        for name, buffer in buffers.items():
            binding.bind_ortvalue_input(name, buffer)
        for name in names:
            if name in after:
                binding.bind_ortvalue_output(name, buffers[after[name]])
            else:
                binding.bind_output(name)
        self.inner.run_with_iobinding(binding)
        values: list[np.ndarray] = binding.copy_outputs_to_cpu()
        return values

    def close(self) -> None:
        self.inner = None


def check_sizes(value: Value, axes: Mapping[str, int]) -> None:
    """Raises: ProfileError for another batch or sequence than the file always has. value: its main
    input."""
    for name, size in zip(("batch", "sequence"), value.sizes, strict=True):
        if size not in (None, axes[name]):
            raise ProfileError(f"{name} is always {size}.")


def check_caches(matched: Taken, values: Mapping[str, np.ndarray], axes: Mapping[str, int]) -> None:
    """Raises: ProfileError for more slots than fixed caches have, or rows of several lengths where
    they have one."""
    slots, lengths = matched.capacity, values.get(LENGTHS)
    if slots is not None and axes["capacity"] > slots:
        raise ProfileError(f"its caches have {slots} slots.")
    if lengths is not None and not matched.by_row and len(set(lengths.tolist())) > 1:
        raise ProfileError("the rows of its caches have one length.")


def number(
    name: str,
    value: Value,
    values: Mapping[str, np.ndarray],
    axes: Mapping[str, int],
    mask_slots: int | None,
) -> np.ndarray:
    """What a file's input of whole numbers gets. name: ours. values: our inputs. mask_slots: how
    many the mask always covers, if it does."""
    dtype, sequence = numpy_dtype(value.dtype), axes["sequence"]
    lengths = values.get(LENGTHS)
    if lengths is None:
        lengths = np.full(axes["batch"], axes.get("past", 0))
    if name == "cache_position":
        result = lengths.max() + np.arange(sequence)
    elif name == "cache_lengths":
        result = lengths
    elif name == "total_lengths":
        result = lengths + sequence
    elif name == "seqlens_k":
        result = lengths + sequence - 1
    elif name == "total_length":
        result = lengths.max(keepdims=True) + sequence
    else:
        result = values[name]
        if name == "attention_mask" and mask_slots is not None:
            result = np.pad(result, ((0, 0), (0, mask_slots - result.shape[1])))
    if name in ("seqlens_k", "total_length") and value.shape is not None:
        result = result.reshape([-1 if x == 0 else 1 for x in range(len(value.shape))])
    return np.ascontiguousarray(result, dtype)


def given(cache: Cache, own: np.ndarray) -> np.ndarray:
    """A cache of ours, (batch, heads, slots, width), as the file takes it."""
    if cache.capacity is not None:
        free = cache.capacity - own.shape[2]
        own = np.pad(own, ((0, 0), (0, 0), (0, free), (0, 0)), constant_values=STALE)
    return np.ascontiguousarray(TO[cache.layout](own))


def returned(cache: Cache, theirs: np.ndarray, heads: int, axes: Mapping[str, int]) -> np.ndarray:
    """A cache that the file gives, as ours with the slots of the call."""
    own = FROM[cache.layout](theirs, heads)
    return own if cache.capacity is None else own[:, :, : axes["capacity"]]


def _same(value: np.ndarray, heads: int = 0) -> np.ndarray:
    return value


def _slots_first(value: np.ndarray, heads: int = 0) -> np.ndarray:
    return value.swapaxes(1, 2)


def _flat(value: np.ndarray) -> np.ndarray:
    batch, heads, slots, width = value.shape
    return value.swapaxes(1, 2).reshape(batch, slots, heads * width)


def _from_flat(value: np.ndarray, heads: int) -> np.ndarray:
    batch, slots, features = value.shape
    return value.reshape(batch, slots, heads, features // heads).swapaxes(1, 2)


TO: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    HEADS_FIRST: _same,
    SLOTS_FIRST: _slots_first,
    FLAT: _flat,
}
FROM: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    HEADS_FIRST: _same,
    SLOTS_FIRST: _slots_first,
    FLAT: _from_flat,
}

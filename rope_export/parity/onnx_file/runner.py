"""Runs a file by our names: what a call has is brought into the form that the file takes."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from rope_export.arrays import numpy_dtype, to_numpy
from rope_export.errors import ArtifactError, RopeExportError, UnavailableError
from rope_export.parity.onnx_file.file import OnnxFile
from rope_export.parity.onnx_file.names import FLAT, HEADS_FIRST, SLOTS_FIRST, Matched
from rope_export.runtimes import Runner, find_runtime
from rope_export.runtimes.onnxruntime import IN_MEMORY, OnnxRuntime, first_line

if TYPE_CHECKING:
    from rope_export.arrays import Array

Arrays = dict[str, np.ndarray]


def start(file: OnnxFile, runtime: str) -> Any:
    """onnxruntime's session of the file, on one of its providers.

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
    if file.data:
        names, buffers = list(file.data), list(file.data.values())
        getattr(options, IN_MEMORY)(names, buffers, [len(x) for x in buffers])
    try:
        return chosen.start(file.model, options)
    except Exception as error:  # onnxruntime's own kinds derive from Exception alone
        reason = first_line(error)
        raise ArtifactError(f"{file.path}: onnxruntime refuses it: {reason}") from error


class FileRunner(Runner):
    """Calls with our inputs; see `Matched`. heads: of each cache."""

    def __init__(self, inner: Any, matched: Matched, heads: Mapping[str, Any]) -> None:
        self._inner, self._matched, self._heads = inner, matched, heads

    def run(
        self, inputs: "Mapping[str, Array]", axes: Mapping[str, int], into: "Mapping[str, Array]"
    ) -> "dict[str, Array]":
        if self._inner is None:
            raise RopeExportError("the session is closed.")
        values = {name: to_numpy(x) for name, x in inputs.items()}
        feeds = {
            value.name: np.ascontiguousarray(_number(name, values, axes), numpy_dtype(value.dtype))
            for name, value in self._matched.numbers.items()
        }
        for name, cache in self._matched.caches.items():
            own = values[f"past_key_values.{name}"]
            feeds[cache.before.name] = np.ascontiguousarray(TO[cache.layout](own))
        names = {"logits": self._matched.logits.name}
        names |= {f"present.{name}": x.after.name for name, x in self._matched.caches.items()}
        try:
            results = self._inner.run(list(names.values()), feeds)
        except Exception as error:
            raise RopeExportError(f"onnxruntime failed: {first_line(error)}") from error
        outputs = dict(zip(names, results, strict=True))
        if outputs["logits"].ndim == 2:
            outputs["logits"] = outputs["logits"][:, None]
        for name, cache in self._matched.caches.items():
            key = f"present.{name}"
            outputs[key] = FROM[cache.layout](outputs[key], self._heads[name])
        return outputs

    def close(self) -> None:
        self._inner = None


def _number(name: str, values: Mapping[str, np.ndarray], axes: Mapping[str, int]) -> np.ndarray:
    if name == "cache_position":
        return np.arange(axes["past"], axes["past"] + axes["sequence"])
    return values[name]


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

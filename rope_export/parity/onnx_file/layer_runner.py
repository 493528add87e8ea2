"""Runs a file with one attention layer by our names; what it takes in place of positions and of a
mask by slots is made of those."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from rope_export.arrays import numpy_dtype, to_numpy
from rope_export.errors import RopeExportError
from rope_export.interface import LENGTHS, cache_names
from rope_export.parity.layer.inv_freq import frequencies
from rope_export.parity.onnx_file.file import Value
from rope_export.parity.onnx_file.layer_names import MatchedLayer
from rope_export.parity.onnx_file.runner import given, number, returned
from rope_export.runtimes import Runner
from rope_export.runtimes.base import written
from rope_export.runtimes.onnxruntime import first_line
from rope_export.spec import AttentionSpec

if TYPE_CHECKING:
    from rope_export.arrays import Array


class LayerRunner(Runner):
    """Calls with our inputs; see `MatchedLayer`."""

    def __init__(self, inner: Any, matched: MatchedLayer, spec: AttentionSpec) -> None:
        self._inner, self._matched, self._spec = inner, matched, spec
        self._inv_freq = frequencies(spec) if spec.rope is not None else None

    def run(
        self, inputs: "Mapping[str, Array]", axes: Mapping[str, int], into: "Mapping[str, Array]"
    ) -> "dict[str, Array]":
        if self._inner is None:
            raise RopeExportError("the session is closed.")
        values = {name: to_numpy(x) for name, x in inputs.items()}
        matched = self._matched
        feeds = {
            value.name: np.ascontiguousarray(self._value(name, value, values, axes))
            for name, value in matched.inputs.items()
        }
        kind = "fixed" if matched.fixed else "growing"
        caches = {cache_names(name, kind): cache for name, cache in matched.caches.items()}
        for (before, _), cache in caches.items():
            feeds[cache.before.name] = given(cache, values[before])
        names = {"attention_output": matched.output.name}
        names |= {after: cache.after.name for (_, after), cache in caches.items()}
        try:
            results = self._inner.run(list(names.values()), feeds)
        except Exception as error:
            raise RopeExportError(f"onnxruntime failed: {first_line(error)}") from error
        outputs = dict(zip(names, results, strict=True))
        for (_, after), cache in caches.items():
            outputs[after] = returned(cache, outputs[after], self._spec.kv_heads, axes)
        return written(outputs, into)

    def close(self) -> None:
        self._inner = None

    def _value(
        self, name: str, value: Value, values: Mapping[str, np.ndarray], axes: Mapping[str, int]
    ) -> np.ndarray:
        dtype = numpy_dtype(value.dtype)
        if name in ("cos", "sin"):
            return self._angles(name, value, values["position_ids"]).astype(dtype)
        if name == "attention_mask" and value.shape is not None and len(value.shape) == 4:
            visible = self._visible(values, axes)
            if value.dtype == "bool":
                return visible
            import ml_dtypes

            return np.where(visible, 0, ml_dtypes.finfo(dtype).min).astype(dtype)
        if name == "hidden_states":
            return values[name].astype(dtype)
        matched = self._matched
        if name == "attention_mask" and name not in values:
            slots = axes["capacity"] if matched.fixed else axes["past"] + axes["sequence"]
            values = {**values, name: np.ones((axes["batch"], slots), np.int64)}
        if name == "attention_mask" and matched.fixed and not matched.whole_mask:
            covered = int(values[LENGTHS].max()) + axes["sequence"]
            values = {**values, name: values[name][:, :covered]}
        return number(name, value, values, axes, matched.mask_slots)

    def _angles(self, name: str, value: Value, positions: np.ndarray) -> np.ndarray:
        """cos or sin of the float32 angles, (batch, sequence, features), laid out as features."""
        rope = self._spec.rope
        assert rope is not None
        assert self._inv_freq is not None
        inv_freq = self._inv_freq(int(positions.max(initial=0)) + 1)
        angles = positions.astype(np.float32)[..., None] * inv_freq
        result = rope.attention_factor * getattr(np, name)(angles.astype(np.float64))
        assert value.shape is not None
        if value.shape[-1] != len(inv_freq):
            if rope.layout == "interleaved":
                result = np.repeat(result, 2, axis=-1)
            else:
                result = np.concatenate((result, result), axis=-1)
        return result if len(value.shape) == 3 else result[:, None]

    def _visible(self, values: Mapping[str, np.ndarray], axes: Mapping[str, int]) -> np.ndarray:
        """Which slots each token sees, (batch, 1, sequence, slots)."""
        spec, sequence = self._spec, axes["sequence"]
        starts = values.get(LENGTHS)
        if starts is None:
            starts = np.full(axes["batch"], axes.get("past", 0))
        slots = int(starts.max()) + sequence
        if self._matched.fixed:
            slots = self._matched.mask_slots or axes["capacity"]
        ahead = np.arange(slots) - (starts[:, None] + np.arange(sequence))[..., None]
        last = sequence - 1 - np.arange(sequence)  # of the new slots, from each of them
        visible = ahead <= (0 if spec.causal else last[:, None])
        if spec.window is not None:
            visible &= -ahead < spec.window
        mask = values.get("attention_mask")
        if mask is not None:
            free = slots - mask.shape[1]
            visible &= np.pad(mask, ((0, 0), (0, max(0, free))))[:, None, :slots] == 1
        return visible[:, None]

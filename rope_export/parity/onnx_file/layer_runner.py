"""Runs a file with one attention layer by our names; what it takes in place of positions and of a
mask by slots is made of those."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from rope_export.arrays import numpy_dtype, to_numpy
from rope_export.errors import RopeExportError
from rope_export.parity.layer.inv_freq import frequencies
from rope_export.parity.onnx_file.file import Value
from rope_export.parity.onnx_file.layer_names import MatchedLayer
from rope_export.parity.onnx_file.runner import FROM, TO
from rope_export.runtimes import Runner
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
        for name, cache in matched.caches.items():
            own = values[f"past_{name}"]
            feeds[cache.before.name] = np.ascontiguousarray(TO[cache.layout](own))
        names = {"attention_output": matched.output.name}
        names |= {f"present_{name}": x.after.name for name, x in matched.caches.items()}
        try:
            results = self._inner.run(list(names.values()), feeds)
        except Exception as error:
            raise RopeExportError(f"onnxruntime failed: {first_line(error)}") from error
        outputs = dict(zip(names, results, strict=True))
        for name, cache in matched.caches.items():
            key = f"present_{name}"
            outputs[key] = FROM[cache.layout](outputs[key], self._spec.kv_heads)
        return outputs

    def close(self) -> None:
        self._inner = None

    def _value(
        self, name: str, value: Value, values: Mapping[str, np.ndarray], axes: Mapping[str, int]
    ) -> np.ndarray:
        dtype = numpy_dtype(value.dtype)
        if name in ("cos", "sin"):
            return self._angles(name, value, values["position_ids"]).astype(dtype)
        if name == "attention_mask" and value.shape is not None and len(value.shape) == 4:
            visible = self._visible(values.get("attention_mask"), axes)
            if value.dtype == "bool":
                return visible
            return np.where(visible, 0, np.finfo(dtype).min).astype(dtype)
        return values[name].astype(dtype)

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

    def _visible(self, mask: np.ndarray | None, axes: Mapping[str, int]) -> np.ndarray:
        """Which slots each token sees, (batch, 1, sequence, total)."""
        spec, past, sequence = self._spec, axes["past"], axes["sequence"]
        ahead = np.arange(past + sequence) - (past + np.arange(sequence)[:, None])
        visible = np.ones(ahead.shape, dtype=bool)
        if spec.causal:
            visible &= ahead <= 0
        if spec.window is not None:
            visible &= -ahead < spec.window
        whole = np.broadcast_to(visible, (axes["batch"], 1, *visible.shape))
        return whole.copy() if mask is None else whole & (mask[:, None, None] == 1)

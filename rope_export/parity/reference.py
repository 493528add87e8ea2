"""The mathematics of the layer in float64, written once more: what every runtime is held to.

Nothing here comes from the module that is exported, so a fault in it cannot be shared. Only
inv_freq is given, in float32: the angle is the float32 product of position and frequency, since
that is the angle the model was trained with, and everything from there on is exact to float64.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rope_export.spec import AttentionSpec

Float64 = np.ndarray


@dataclass(frozen=True, kw_only=True)
class Trace:
    """One call, with every quantity on the way. B batch, S new, T slots, H heads, G kv heads, D.

    x (B, S, hidden); q (B, H, S, D), k, v (B, G, S, D) before turning; cos, sin (B, 1, S, R / 2);
    turned_q, turned_k; keys, values (B, G, T, D); scores, weights (B, H, S, T);
    heads (B, S, H * D); output (B, S, hidden); attended (B, S): may see at least one slot.
    """

    x: Float64
    q: Float64
    k: Float64
    v: Float64
    cos: Float64
    sin: Float64
    turned_q: Float64
    turned_k: Float64
    keys: Float64
    values: Float64
    scores: Float64
    weights: Float64
    heads: Float64
    output: Float64
    attended: np.ndarray

    @property
    def outputs(self) -> dict[str, Float64]:
        """By the names that an artifact gives them."""
        return {
            "attention_output": self.output,
            "present_key": self.keys,
            "present_value": self.values,
        }


class ReferenceLayer:
    """One layer's weights as deployed, in float64.

    weights: by their names in the spec, (out, in). inv_freq: float32 (R / 2).
    """

    def __init__(
        self, spec: AttentionSpec, weights: Mapping[str, np.ndarray], inv_freq: np.ndarray
    ) -> None:
        assert inv_freq.dtype == np.float32
        self.spec, self.inv_freq = spec, inv_freq
        self.weights = {name: w.astype(np.float64) for name, w in weights.items()}

    def project(self, name: str, x: Float64) -> Float64:
        """x W^T + b, for the projection `name`."""
        y = x @ self.weights[f"{name}_proj.weight"].T
        return y + self.weights.get(f"{name}_proj.bias", 0.0)

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> Trace:
        """The layer's outputs for one call's inputs, named as in the artifact's contract."""
        spec = self.spec
        x = inputs["hidden_states"].astype(np.float64)
        batch, sequence, _ = x.shape
        q, k, v = (self.split(self.project(name, x)) for name in "qkv")
        cos, sin = self._cos_sin(inputs["position_ids"])
        turned_q, turned_k = self._turn(q, cos, sin), self._turn(k, cos, sin)
        keys, values = self._grow(inputs, turned_k, v)
        total = keys.shape[2]
        visible = np.arange(total) <= np.arange(sequence)[:, None] + (total - sequence)
        visible = np.broadcast_to(visible, (batch, sequence, total))
        if "attention_mask" in inputs:
            visible = visible & (inputs["attention_mask"] == 1)[:, None, :]
        scores = spec.softmax_scale * turned_q @ self.shared(keys).swapaxes(2, 3)
        weights = _softmax(scores, visible[:, None])
        heads = (weights @ self.shared(values)).swapaxes(1, 2).reshape(batch, sequence, -1)
        return Trace(
            x=x,
            q=q,
            k=k,
            v=v,
            cos=cos,
            sin=sin,
            turned_q=turned_q,
            turned_k=turned_k,
            keys=keys,
            values=values,
            scores=scores,
            weights=weights,
            heads=heads,
            output=self.project("o", heads),
            attended=visible.any(axis=-1),
        )

    def cache(self, hidden: np.ndarray, position_ids: np.ndarray) -> tuple[Float64, Float64]:
        """Turned keys and values (B, G, S, D) that the layer makes of these tokens."""
        x = hidden.astype(np.float64)
        k, v = (self.split(self.project(name, x)) for name in "kv")
        return self._turn(k, *self._cos_sin(position_ids)), v

    def split(self, x: Float64) -> Float64:
        """(B, S, heads * D) as (B, heads, S, D)."""
        heads = x.shape[2] // self.spec.head_dim
        return x.reshape(*x.shape[:2], heads, self.spec.head_dim).swapaxes(1, 2)

    def _cos_sin(self, position_ids: np.ndarray) -> tuple[Float64, Float64]:
        angles = position_ids.astype(np.float32)[:, None, :, None] * self.inv_freq
        assert angles.dtype == np.float32
        factor = self.spec.rope.attention_factor
        return factor * np.cos(angles.astype(np.float64)), factor * np.sin(
            angles.astype(np.float64)
        )

    def _turn(self, x: Float64, cos: Float64, sin: Float64) -> Float64:
        """Each pair as a complex number, times e^(i angle)."""
        first, second = pairs(self.spec)
        turned = (x[..., first] + 1j * x[..., second]) * (cos + 1j * sin)
        result = x.copy()
        result[..., first], result[..., second] = turned.real, turned.imag
        return result

    def _grow(
        self, inputs: Mapping[str, np.ndarray], k: Float64, v: Float64
    ) -> tuple[Float64, Float64]:
        if "past_key" not in inputs:
            return k, v
        past_key, past_value = (inputs[n].astype(np.float64) for n in ("past_key", "past_value"))
        return np.concatenate((past_key, k), axis=2), np.concatenate((past_value, v), axis=2)

    def shared(self, x: Float64) -> Float64:
        """Each key/value head, for every query head of its group: (B, H, T, D)."""
        return np.repeat(x, self.spec.heads // self.spec.kv_heads, axis=1)


def pairs(spec: AttentionSpec) -> tuple[np.ndarray, np.ndarray]:
    """The first and the second feature of each rotary pair."""
    at = np.arange(spec.rope.rotary_dim // 2)
    if spec.rope.layout == "interleaved":
        return 2 * at, 2 * at + 1
    return at, at + spec.rope.rotary_dim // 2


def _softmax(scores: Float64, visible: np.ndarray) -> Float64:
    """Over the visible slots; zero where there is none."""
    shifted = np.where(visible, scores, -np.inf)
    top = np.max(shifted, axis=-1, keepdims=True)
    powers = np.exp(shifted - np.where(np.isfinite(top), top, 0.0))
    total = powers.sum(axis=-1, keepdims=True)
    return powers / np.where(total == 0, 1.0, total)

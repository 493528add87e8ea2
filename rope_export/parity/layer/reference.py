"""The mathematics of the layer in float64, written once more: what every runtime is held to.

Nothing here comes from the module that is exported, so a fault in it cannot be shared. Only
inv_freq is an argument, in float32: the angle is the float32 product of position and frequency,
since that is the angle the model was trained with, and everything after it is exact to float64.
"""

from collections.abc import Callable, Mapping

import numpy as np

from rope_export.interface import LENGTHS
from rope_export.parity.layer.attending import averaged, scored, softmax, written
from rope_export.parity.layer.rotation import centred, pairs, places
from rope_export.parity.layer.trace import Float64, New, Trace
from rope_export.spec import AttentionSpec, NormSpec

InvFreq = Callable[[int], np.ndarray]


class ReferenceLayer:
    """One layer's weights as deployed, in float64.

    weights: by their names in the spec, (out, in). inv_freq: float32 (R / 2) for a call whose
    largest position is one less than its argument. int8_blocks: how many features share a
    scale, by the projection whose kernel rounds its input to int8; for `bounds` alone.
    """

    def __init__(
        self,
        spec: AttentionSpec,
        weights: Mapping[str, np.ndarray],
        inv_freq: InvFreq,
        int8_blocks: Mapping[str, int] | None = None,
    ) -> None:
        self.spec, self.inv_freq, self.int8_blocks = spec, inv_freq, int8_blocks or {}
        self.weights = {name: w.astype(np.float64) for name, w in weights.items()}

    def rounding(self, int8_blocks: Mapping[str, int]) -> "ReferenceLayer":
        """The same layer, whose bounds are those of a kernel that rounds to int8."""
        if not int8_blocks:
            return self
        return ReferenceLayer(self.spec, self.weights, self.inv_freq, int8_blocks)

    def project(self, name: str, x: Float64) -> Float64:
        """x W^T + b, for the projection `name`."""
        y = x @ self.weights[f"{name}_proj.weight"].T
        return y + self.weights.get(f"{name}_proj.bias", 0.0)

    def norm(self, name: str, spec: NormSpec, x: Float64) -> Float64:
        """x over its root mean square, or its deviation over that of it, times the weights."""
        if spec.kind == "layer":
            x = x - np.mean(x, axis=-1, keepdims=True)
        return self._weighted(name, spec, x / np.sqrt(np.mean(x * x, -1, keepdims=True) + spec.eps))

    def _weighted(self, name: str, spec: NormSpec, y: Float64) -> Float64:
        """y times the weights of a norm, plus its bias."""
        if spec.weight:
            y = y * (spec.offset + self.weights[f"{name}.weight"])
        return y + self.weights[f"{name}.bias"] if spec.bias else y

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> Trace:
        """The layer's outputs for one call's inputs, named as in the artifact's interface."""
        spec = self.spec
        x = inputs["hidden_states"].astype(np.float64)
        batch, sequence, _ = x.shape
        new = self._new(x, inputs.get("position_ids"))
        cache = {name: _grown(inputs, name, value) for name, value in new.cache.items()}
        keys, values = self.expanded(cache)
        total = keys.shape[2]
        starts = inputs.get(LENGTHS, np.full(batch, total - sequence))
        visible = self._visible(inputs, starts, sequence, total)
        raw = scored(new.ready_q, keys)
        raw *= spec.softmax_scale
        scores = raw if spec.softcap is None else spec.softcap * np.tanh(raw / spec.softcap)
        weights = softmax(scores, visible[:, None], self.weights.get("sinks"))
        mixed = averaged(weights, values).swapaxes(1, 2)
        gate, heads = self._finished(x, mixed)
        return Trace(
            x=x,
            projected=new.projected,
            q=new.q,
            k=new.k,
            cos=new.cos,
            sin=new.sin,
            rotated_q=new.rotated_q,
            rotated_k=new.rotated_k,
            ready_q=new.ready_q,
            q_factor=new.q_factor,
            keys=keys,
            values=values,
            cache=cache,
            raw_scores=raw,
            scores=scores,
            weights=weights,
            mixed=mixed,
            gate=gate,
            heads=heads,
            output=self.project("o", heads),
            visible=visible,
            attended=np.any(visible, axis=-1),
            starts=starts,
            fixed=LENGTHS in inputs,
        )

    def cache(self, hidden: np.ndarray, position_ids: np.ndarray | None) -> dict[str, Float64]:
        """What the layer caches of these tokens, by name; their queries are not computed."""
        x = hidden.astype(np.float64)
        if self.spec.latent is not None:
            return self._new(x, position_ids).cache
        k, v = (self._before(name, self.project(name, x)) for name in "kv")
        key = self.rotate(k, *self._cos_sin(x, position_ids))
        if self.spec.norm_after_rope:
            key = self._after("k", key)
        return {"key": key, "value": v}

    def _new(self, x: Float64, position_ids: np.ndarray | None) -> New:
        if self.spec.latent is not None:
            return self._new_latent(x, position_ids)
        spec = self.spec
        projected = {name: self.project(name, x) for name in "qkv"}
        q, k, v = (self._before(name, projected[name]) for name in "qkv")
        cos, sin = self._cos_sin(x, position_ids)
        rotated_q, rotated_k = self.rotate(q, cos, sin), self.rotate(k, cos, sin)
        ready_q, ready_k = rotated_q, rotated_k
        if spec.norm_after_rope:
            ready_q, ready_k = self._after("q", rotated_q), self._after("k", rotated_k)
        factor = self._q_factor(position_ids)
        return New(
            projected=projected,
            q=q,
            k=k,
            cos=cos,
            sin=sin,
            rotated_q=rotated_q,
            rotated_k=rotated_k,
            ready_q=ready_q * factor,
            q_factor=factor,
            cache={"key": ready_k, "value": v},
        )

    def _new_latent(self, x: Float64, position_ids: np.ndarray | None) -> New:
        spec, latent = self.spec, self.spec.latent
        assert latent is not None
        norm = NormSpec(eps=latent.norm_eps)
        projected = {"kv_a": self.project("kv_a", x)}
        if latent.q_rank is None:
            projected["q"] = self.project("q", x)
        else:
            projected["q_a"] = self.project("q_a", x)
            narrow = self.norm("q_a_norm", norm, projected["q_a"]) * latent.q_factor
            projected["q_latent"] = narrow
            projected["q"] = self.project("q_b", narrow)
        q = self.split(projected["q"], spec.head_dim)
        k = projected["kv_a"][:, None, :, latent.kv_rank :]
        narrow = self.norm("kv_a_norm", norm, projected["kv_a"][..., : latent.kv_rank])
        cos, sin = self._cos_sin(x, position_ids)
        q_rotary = q[..., latent.nope_dim :]
        rotated_q, rotated_k = self.rotate(q_rotary, cos, sin), self.rotate(k, cos, sin)
        factor = self._q_factor(position_ids)
        ready = np.concatenate((q[..., : latent.nope_dim], rotated_q), axis=-1) * factor
        return New(
            projected=projected,
            q=q_rotary,
            k=k,
            cos=cos,
            sin=sin,
            rotated_q=rotated_q,
            rotated_k=rotated_k,
            ready_q=ready,
            q_factor=factor,
            cache={"latent": narrow * latent.kv_factor, "key_rope": rotated_k[:, 0]},
        )

    def _before(self, name: str, y: Float64) -> Float64:
        """What goes into the rotation, (B, heads, S, D), of a projection (B, S, heads * D)."""
        spec: NormSpec | None = getattr(self.spec, f"{name}_norm")
        after = self.spec.norm_after_rope and name != "v"
        if spec is not None and spec.over == "all":
            y = self.norm(f"{name}_norm", spec, y)
        if self.spec.clip is not None:
            y = np.clip(y, -self.spec.clip, self.spec.clip)
        if name == "v":
            y = y * self.spec.value_scale
        y = self.split(y, self.spec.value_head_dim if name == "v" else self.spec.head_dim)
        if spec is not None and spec.over != "all" and not after:
            y = self._by_head(name, spec, y)
        return y

    def _after(self, name: str, x: Float64) -> Float64:
        spec: NormSpec | None = getattr(self.spec, f"{name}_norm")
        return x if spec is None else self._by_head(name, spec, x)

    def _by_head(self, name: str, spec: NormSpec, x: Float64) -> Float64:
        return self.norm(f"{name}_norm", spec, x.swapaxes(1, 2)).swapaxes(1, 2)

    def split(self, x: Float64, width: int) -> Float64:
        """(B, S, heads * width) as (B, heads, S, width)."""
        return x.reshape(*x.shape[:2], x.shape[2] // width, width).swapaxes(1, 2)

    def _cos_sin(self, x: Float64, position_ids: np.ndarray | None) -> tuple[Float64, Float64]:
        rope = self.spec.rope
        if rope is None:
            none = np.zeros((x.shape[0], 1, x.shape[1], 0))
            return none, none
        assert position_ids is not None
        inv_freq = self.inv_freq(int(position_ids.max(initial=0)) + 1)
        assert inv_freq.dtype == np.float32
        at = position_ids.astype(np.float32)
        if rope.rope_type == "centred":
            at = centred(position_ids)
        if rope.axes > 1:
            at = np.stack([at[axis] for axis in rope.pair_axes], axis=-1)
        else:
            at = at[:, :, None]
        angles = self._angles(at, inv_freq)[:, None]
        assert angles.dtype == np.float32
        unit = np.exp((-1j if rope.clockwise else 1j) * angles.astype(np.float64))
        return rope.attention_factor * unit.real, rope.attention_factor * unit.imag

    def _angles(self, at: np.ndarray, inv_freq: np.ndarray) -> np.ndarray:
        """Positions (B, S, 1 or R / 2) times frequencies, in float32."""
        return at * inv_freq

    def rotate(self, x: Float64, cos: Float64, sin: Float64) -> Float64:
        """Each pair as a complex number, times e^(i angle)."""
        if self.spec.rope is None:
            return x
        (first, second), (to_first, to_second) = pairs(self.spec), places(self.spec)
        rotated = (x[..., first] + 1j * x[..., second]) * (cos + 1j * sin)
        result = x.copy()
        result[..., to_first], result[..., to_second] = rotated.real, rotated.imag
        return result

    def _q_factor(self, position_ids: np.ndarray | None) -> Float64:
        """What a query is multiplied by for its position, (B, 1, S, 1)."""
        scale = self.spec.position_scale
        if scale is None or position_ids is None:
            return np.ones((1, 1, 1, 1))
        lengths = (position_ids + scale.offset) / scale.length
        if scale.form == "power":
            return ((1 + lengths) ** scale.beta)[:, None, :, None]
        return (1 + scale.beta * np.log(1 + np.floor(lengths)))[:, None, :, None]

    def expanded(self, cache: Mapping[str, Float64]) -> tuple[Float64, Float64]:
        """Keys (B, G, T, D) and values (B, G, T, V) of the cache, for every key head."""
        if self.spec.latent is None:
            return cache["key"], cache["value"]
        nope, value = self.spec.latent.nope_dim, self.spec.value_head_dim
        both = self.split(self.project("kv_b", cache["latent"]), nope + value)
        shared = np.repeat(cache["key_rope"][:, None], self.spec.heads, axis=1)
        return np.concatenate((both[..., :nope], shared), axis=-1), both[..., nope:]

    def _visible(
        self, inputs: Mapping[str, np.ndarray], starts: np.ndarray, sequence: int, total: int
    ) -> np.ndarray:
        """Which of its slots each new token may see, (B, S, T)."""
        spec, batch = self.spec, len(starts)
        own = starts[:, None, None] + np.arange(sequence)[:, None]
        ahead = np.arange(total) - own  # how far a slot lies after the token's own
        visible = np.ones((batch, sequence, total), bool)
        if spec.causal:
            visible &= ahead <= 0
        if spec.window is not None:
            visible &= -ahead < spec.window
        if spec.window_after is not None:
            visible &= ahead <= spec.window_after
        mask = inputs.get("attention_mask", np.ones((batch, total), np.int64)) == 1
        if spec.chunk is not None:
            unpadded = np.array([row.argmax() for row in mask])[:, None, None]
            slot = own + ahead - unpadded
            visible = visible & (slot // spec.chunk == (own - unpadded) // spec.chunk)
        return np.asarray(visible & mask[:, None, :])

    def _finished(self, x: Float64, mixed: Float64) -> tuple[Float64 | None, Float64]:
        """The gate (B, S, H, V or 1), and heads (B, S, H * V) after norm and gate."""
        batch, sequence, _, _ = mixed.shape
        heads = mixed
        if self.spec.o_norm is not None:
            flat = mixed.reshape(batch, sequence, -1)
            whole = self.spec.o_norm.over == "all"
            heads = self.norm("o_norm", self.spec.o_norm, flat if whole else mixed)
            heads = heads.reshape(mixed.shape)
        gate = None
        if self.spec.gate is not None:
            logits = self.project("gate", x)
            softplus = self.spec.gate_kind == "softplus"
            gate = np.logaddexp(0, logits) if softplus else 1 / (1 + np.exp(-logits))
            gate = gate.reshape(batch, sequence, self.spec.heads, -1)
            heads = heads * gate
        return gate, heads.reshape(batch, sequence, -1)


def _grown(inputs: Mapping[str, np.ndarray], name: str, new: Float64) -> Float64:
    """`name` of the cache after a call that adds `new` to it."""
    if LENGTHS in inputs:
        return written(inputs[f"{name}_cache"].astype(np.float64), new, inputs[LENGTHS])
    past = inputs.get(f"past_{name}")
    return new if past is None else np.concatenate((past.astype(np.float64), new), axis=-2)

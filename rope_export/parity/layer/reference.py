"""The mathematics of the layer in float64, written once more: what every runtime is held to.

Nothing here comes from the module that is exported, so a fault in it cannot be shared. Only
inv_freq is given, in float32: the angle is the float32 product of position and frequency, since
that is the angle the model was trained with, and everything from there on is exact to float64.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from rope_export.interface import LENGTHS, cache_names
from rope_export.spec import AttentionSpec, NormSpec

Float64 = np.ndarray
InvFreq = Callable[[int], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Trace:
    """One call, with every quantity on the way. B batch, S new, T slots, H heads, G kv heads, D.

    x (B, S, hidden); projected: the named results of projections and norms before the rotation,
    each as it was first; q (B, H, S, D) and k (B, G, S, D) before turning, in latent attention the
    turning features only; cos, sin (B, 1, S, R / 2); turned_q, turned_k: after the rotation, and
    ready_q after norms and scale, (B, H, S, D); keys, values (B, G, T, D or V), G being H in latent
    attention; cache: what the layer caches, by name; raw_scores, scores (B, H, S, T): before and
    after the softcap; weights (B, H, S, T); mixed (B, S, H, V): weighted values; heads
    (B, S, H * V): after norm and gate; output (B, S, hidden); attended (B, S): may see at least one
    slot; starts (B,): the slot of each row's first new token; fixed: whether the cache is of fixed
    size.
    """

    x: Float64
    projected: dict[str, Float64]
    q: Float64
    k: Float64
    cos: Float64
    sin: Float64
    turned_q: Float64
    turned_k: Float64
    ready_q: Float64
    q_factor: Float64
    keys: Float64
    values: Float64
    cache: dict[str, Float64]
    raw_scores: Float64
    scores: Float64
    weights: Float64
    mixed: Float64
    gate: Float64 | None
    heads: Float64
    output: Float64
    attended: np.ndarray
    starts: np.ndarray
    fixed: bool

    def cache_output(self, name: str) -> str:
        """What an artifact calls `name` of the cache after the call."""
        return cache_names(name, "fixed" if self.fixed else "growing")[1]

    @property
    def outputs(self) -> dict[str, Float64]:
        """By the names that an artifact gives them."""
        cache = {self.cache_output(name): value for name, value in self.cache.items()}
        return {"attention_output": self.output, **cache}

    def new(self, cached: np.ndarray) -> np.ndarray:
        """The part of a cache (B, ..., T, D) that this call wrote, (B, ..., S, D)."""
        count = self.x.shape[1]
        rows = [x[..., at : at + count, :] for x, at in zip(cached, self.starts, strict=True)]
        return np.stack(rows)

    def placed(self, new: np.ndarray) -> np.ndarray:
        """(B, ..., S, D) where this call writes it, and zeros in every other slot."""
        zeros = np.zeros((*new.shape[:-2], self.keys.shape[2], new.shape[-1]))
        return written(zeros, new, self.starts)


@dataclass(frozen=True, kw_only=True)
class New:
    """What the new tokens bring: queries ready for the scores, and the new part of the cache."""

    projected: dict[str, Float64]
    q: Float64
    k: Float64
    cos: Float64
    sin: Float64
    turned_q: Float64
    turned_k: Float64
    ready_q: Float64
    q_factor: Float64
    cache: dict[str, Float64] = field(default_factory=dict)


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
        y = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + spec.eps)
        if spec.weight:
            y = y * (spec.offset + self.weights[f"{name}.weight"])
        return y + self.weights[f"{name}.bias"] if spec.bias else y

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> Trace:
        """The layer's outputs for one call's inputs, named as in the artifact's contract."""
        spec = self.spec
        x = inputs["hidden_states"].astype(np.float64)
        batch, sequence, _ = x.shape
        new = self._new(x, inputs.get("position_ids"))
        cache = {name: _grown(inputs, name, value) for name, value in new.cache.items()}
        keys, values = self.expanded(cache)
        total = keys.shape[2]
        starts = inputs.get(LENGTHS, np.full(batch, total - sequence))
        visible = self._visible(inputs, starts, sequence, total)
        raw = spec.softmax_scale * scored(new.ready_q, keys)
        scores = raw if spec.softcap is None else spec.softcap * np.tanh(raw / spec.softcap)
        weights = _softmax(scores, visible[:, None], self.weights.get("sinks"))
        mixed = averaged(weights, values).swapaxes(1, 2)
        gate, heads = self._finished(x, mixed)
        return Trace(
            x=x,
            projected=new.projected,
            q=new.q,
            k=new.k,
            cos=new.cos,
            sin=new.sin,
            turned_q=new.turned_q,
            turned_k=new.turned_k,
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
            attended=np.any(visible, axis=-1),
            starts=starts,
            fixed=LENGTHS in inputs,
        )

    def cache(self, hidden: np.ndarray, position_ids: np.ndarray | None) -> dict[str, Float64]:
        """What the layer caches of these tokens, by name."""
        return self._new(hidden.astype(np.float64), position_ids).cache

    def _new(self, x: Float64, position_ids: np.ndarray | None) -> New:
        if self.spec.latent is not None:
            return self._new_latent(x, position_ids)
        spec = self.spec
        made = {name: self._made(name, x) for name in "qkv"}
        projected = {name: first for name, (first, _) in made.items()}
        q, k, v = (made[name][1] for name in "qkv")
        cos, sin = self._cos_sin(x, position_ids)
        turned_q, turned_k = self.turn(q, cos, sin), self.turn(k, cos, sin)
        ready_q, ready_k = turned_q, turned_k
        if spec.norm_after_rope:
            ready_q, ready_k = self._after("q", turned_q), self._after("k", turned_k)
        factor = self._q_factor(position_ids)
        return New(
            projected=projected,
            q=q,
            k=k,
            cos=cos,
            sin=sin,
            turned_q=turned_q,
            turned_k=turned_k,
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
            projected["q"] = self.project("q_b", narrow)
        q = self.split(projected["q"], spec.head_dim)
        k = projected["kv_a"][:, None, :, latent.kv_rank :]
        made = self.norm("kv_a_norm", norm, projected["kv_a"][..., : latent.kv_rank])
        cos, sin = self._cos_sin(x, position_ids)
        q_turning = q[..., latent.nope_dim :]
        turned_q, turned_k = self.turn(q_turning, cos, sin), self.turn(k, cos, sin)
        factor = self._q_factor(position_ids)
        ready = np.concatenate((q[..., : latent.nope_dim], turned_q), axis=-1) * factor
        return New(
            projected=projected,
            q=q_turning,
            k=k,
            cos=cos,
            sin=sin,
            turned_q=turned_q,
            turned_k=turned_k,
            ready_q=ready,
            q_factor=factor,
            cache={"latent": made * latent.kv_factor, "key_rope": turned_k[:, 0]},
        )

    def _made(self, name: str, x: Float64) -> tuple[Float64, Float64]:
        """The projection, and what goes into the rotation: (B, S, heads * D), (B, heads, S, D)."""
        spec: NormSpec | None = getattr(self.spec, f"{name}_norm")
        after = self.spec.norm_after_rope and name != "v"
        first = y = self.project(name, x)
        if spec is not None and spec.over == "all":
            y = self.norm(f"{name}_norm", spec, y)
        if self.spec.clip is not None:
            y = np.clip(y, -self.spec.clip, self.spec.clip)
        if name == "v":
            y = y * self.spec.value_scale
        y = self.split(y, self.spec.value_head_dim if name == "v" else self.spec.head_dim)
        if spec is not None and spec.over != "all" and not after:
            y = self._by_head(name, spec, y)
        return first, y

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
            still = np.zeros((x.shape[0], 1, x.shape[1], 0))
            return still, still
        assert position_ids is not None
        inv_freq = self.inv_freq(int(position_ids.max(initial=0)) + 1)
        assert inv_freq.dtype == np.float32
        at = position_ids.astype(np.float32)
        if rope.rope_type == "centred":
            at = _centred(position_ids)
        if rope.axes > 1:
            at = np.stack([at[axis] for axis in rope.pair_axes], axis=-1)
        else:
            at = at[:, :, None]
        angles = (at * inv_freq)[:, None]
        assert angles.dtype == np.float32
        turn = np.exp((-1j if rope.clockwise else 1j) * angles.astype(np.float64))
        return rope.attention_factor * turn.real, rope.attention_factor * turn.imag

    def turn(self, x: Float64, cos: Float64, sin: Float64) -> Float64:
        """Each pair as a complex number, times e^(i angle)."""
        if self.spec.rope is None:
            return x
        (first, second), (to_first, to_second) = pairs(self.spec), places(self.spec)
        turned = (x[..., first] + 1j * x[..., second]) * (cos + 1j * sin)
        result = x.copy()
        result[..., to_first], result[..., to_second] = turned.real, turned.imag
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
        made = self.split(self.project("kv_b", cache["latent"]), nope + value)
        shared = np.repeat(cache["key_rope"][:, None], self.spec.heads, axis=1)
        return np.concatenate((made[..., :nope], shared), axis=-1), made[..., nope:]

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


def pairs(spec: AttentionSpec) -> tuple[np.ndarray, np.ndarray]:
    """The first and the second feature of each rotary pair, before turning."""
    if spec.rope is None:
        return np.arange(0), np.arange(0)
    at = np.arange(spec.rope.rotary_dim // 2)
    if spec.rope.layout == "half_split":
        return at, at + spec.rope.rotary_dim // 2
    return 2 * at, 2 * at + 1


def places(spec: AttentionSpec) -> tuple[np.ndarray, np.ndarray]:
    """Where the two features of each pair are after turning."""
    first, second = pairs(spec)
    if spec.rope is not None and spec.rope.layout == "permuted":
        return first // 2, first // 2 + len(first)
    return first, second


def _centred(position_ids: np.ndarray) -> np.ndarray:
    """Float32 angles at frequency 1 of patches (axes, B, S) in an image from -1 to 1."""
    size = (1 + position_ids.max(axis=(1, 2), keepdims=True)).astype(np.float32)
    half, one, two = np.float32(0.5), np.float32(1), np.float32(2)
    places = two * ((position_ids.astype(np.float32) + half) / size) - one
    return np.where(position_ids < 0, np.float32(0), np.float32(2 * np.pi) * places)


def _grown(inputs: Mapping[str, np.ndarray], name: str, new: Float64) -> Float64:
    if LENGTHS in inputs:
        return written(inputs[f"{name}_cache"].astype(np.float64), new, inputs[LENGTHS])
    past = inputs.get(f"past_{name}")
    return new if past is None else np.concatenate((past.astype(np.float64), new), axis=-2)


def written(cache: np.ndarray, new: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """`cache` (B, ..., T, D) itself, with `new` (B, ..., S, D) from slot `starts` (B,) on."""
    for row, values, at in zip(cache, new, starts, strict=True):
        row[..., at : at + new.shape[-2], :] = values
    return cache


def scored(q: Float64, keys: Float64) -> Float64:
    """q (B, H, S, D) by the keys (B, G, T, D) of its group: (B, H, S, T)."""
    return _by_group(q, keys.swapaxes(2, 3))


def averaged(weights: Float64, values: Float64) -> Float64:
    """Values (B, G, T, V) by the weights (B, H, S, T) of each head: (B, H, S, V)."""
    return _by_group(weights, values)


def _by_group(of_heads: Float64, of_groups: Float64) -> Float64:
    """Matrix products of (B, H, S, N) with (B, G, N, M), H / G heads with each: (B, H, S, M)."""
    batch, heads, rows, inner = of_heads.shape
    groups = of_groups.shape[1]
    together = of_heads.reshape(batch, groups, heads // groups * rows, inner) @ of_groups
    return together.reshape(batch, heads, rows, -1)


def _softmax(scores: Float64, visible: np.ndarray, sinks: Float64 | None) -> Float64:
    """Over the visible slots, and the sink of each head where there is one; zero where neither."""
    shifted = np.where(visible, scores, -np.inf)
    top = np.max(shifted, axis=-1, keepdims=True)
    if sinks is not None:
        top = np.maximum(top, sinks[:, None, None])
    top = np.where(np.isfinite(top), top, 0.0)
    powers = np.exp(shifted - top)
    total = powers.sum(axis=-1, keepdims=True)
    if sinks is not None:
        total = total + np.exp(sinks[:, None, None] - top)
    return powers / np.where(total == 0, 1.0, total)

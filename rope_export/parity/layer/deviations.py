"""How far rounding alone can take an attention layer from its reference: the ceiling.

Every stored or summed number is off by a factor 1 + d with |d| <= u, and the d are taken as
independent and of mean zero. Carried to first order through the layer, an output's error is a sum
of a_k d_k, and Hoeffding's inequality gives P(|error| > t u ||a||) <= 2 exp(-t^2 / 2). So
`rounding_deviations` carries u ||a|| forward, element by element, and the ceiling is t times that,
with the t of `bounds`. Numbers are stored in the artifact's dtype, unit roundoff u; products are
summed in float32 or better, unit roundoff v, by every CPU kernel of PyTorch.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rope_export.parity.bounds import ACCUMULATOR, TIMES, UNDERFLOW, UNIT_ROUNDOFF
from rope_export.parity.layer.attending import averaged, scored
from rope_export.parity.layer.carried import (
    LOST,
    factored,
    normed,
    projection,
    stored,
    summed,
    vanishing,
)
from rope_export.parity.layer.moved import moved_by
from rope_export.parity.layer.reference import ReferenceLayer
from rope_export.parity.layer.rotation import pairs, places
from rope_export.parity.layer.trace import Trace
from rope_export.spec import AttentionSpec, NormSpec

STEADY = 0.25
"""Deviation of a score up to which a weight is off by a few parts in ten, at three times that."""


def ceiling(layer: ReferenceLayer, trace: Trace) -> dict[str, np.ndarray]:
    """Bounds on eager's absolute errors in this call, for each output; 0 for slots that were there
    before."""
    squares = rounding_deviations(layer, trace)
    bounds = {trace.main_output: TIMES * np.sqrt(squares.output)}
    for name, new in squares.cache.items():
        bounds[trace.cache_output(name)] = TIMES * np.sqrt(trace.placed(new))
    return bounds


@dataclass(frozen=True, kw_only=True)
class Deviations:
    """(u ||a||)^2 of the attention output, and of the new part of the cache by name."""

    output: np.ndarray
    cache: dict[str, np.ndarray]


Note = Callable[[str, np.ndarray], None]
"""Takes what was carried as far as one tensor on the way, by the tensor's name."""


def _unnoted(name: str, squares: np.ndarray) -> None:
    """As a `Note` where nobody looks."""


def rounding_deviations(layer: ReferenceLayer, trace: Trace, note: Note = _unnoted) -> Deviations:
    """u ||a||, squared, carried through the layer from its input."""
    u = UNIT_ROUNDOFF[layer.spec.dtype]
    if layer.spec.rope is not None:
        for name, value in (("cos", trace.cos), ("sin", trace.sin)):
            note(name, np.full(value.shape, (u * layer.spec.rope.attention_factor) ** 2))
    new = _latent if layer.spec.latent is not None else _plain
    q, cache = new(layer, trace, u, note)
    keys, values = _expanded(layer, trace, cache, u)
    note("keys", keys)
    note("values", values)
    mixed = _attended(layer, trace, q, keys, values, u, note)
    note("context", mixed)
    heads = _finished(layer, trace, mixed, u, note)
    note("heads", heads)
    output = projection(layer, "o", trace.heads, heads, trace.output, u)
    note("o_proj", output)
    return Deviations(output=output, cache=cache)


Cached = dict[str, np.ndarray]


def _plain(
    layer: ReferenceLayer, trace: Trace, u: float, note: Note = _unnoted
) -> tuple[np.ndarray, Cached]:
    """Queries and the new cache of a layer without a latent."""
    spec = layer.spec
    q, k, v = (_projected(layer, name, trace, u, note) for name in "qkv")
    q, k = _rotated(spec, trace, trace.q, q, u), _rotated(spec, trace, trace.k, k, u)
    note("q_rotated", q)
    note("k_rotated", k)
    if spec.norm_after_rope:
        q = _by_head(layer, "q", trace.rotated_q, q, u)
        k = _by_head(layer, "k", trace.rotated_k, k, u)
    q = factored(trace.q_factor, trace.ready_q, q, u, spec.dtype)
    note("q_ready", q)
    note("k_ready", k)
    return q, {"key": k, "value": v}


def _projected(layer: ReferenceLayer, name: str, trace: Trace, u: float, note: Note) -> np.ndarray:
    """A projection and the norm that comes before the rotation; clamping moves nothing apart."""
    error = projection(layer, name, trace.x, None, trace.projected[name], u)
    note(f"{name}_proj", error)
    error = _before(layer, name, trace, error, u)
    note(name, error)
    return error


def _before(
    layer: ReferenceLayer, name: str, trace: Trace, error: np.ndarray, u: float
) -> np.ndarray:
    """What goes into the rotation, of a projection."""
    spec = layer.spec
    norm: NormSpec | None = getattr(spec, f"{name}_norm")
    x, width = trace.projected[name], spec.value_head_dim if name == "v" else spec.head_dim
    if name == "v":
        error = factored(np.array(spec.value_scale), x * spec.value_scale, error, u, spec.dtype)
    if norm is not None and norm.over == "all":
        return layer.split(normed(layer, f"{name}_norm", norm, x, error, u), width)
    error = layer.split(error, width)
    if norm is None or (spec.norm_after_rope and name != "v"):
        return error
    clip = np.inf if spec.clip is None else spec.clip
    return _by_head(layer, name, layer.split(np.clip(x, -clip, clip), width), error, u)


def _by_head(
    layer: ReferenceLayer, name: str, x: np.ndarray, error: np.ndarray, u: float
) -> np.ndarray:
    """The norm of x (B, heads, S, D), whose weights may differ from head to head."""
    norm: NormSpec | None = getattr(layer.spec, f"{name}_norm")
    if norm is None:
        return error
    x, error = x.swapaxes(1, 2), error.swapaxes(1, 2)
    return normed(layer, f"{name}_norm", norm, x, error, u).swapaxes(1, 2)


def _latent(
    layer: ReferenceLayer, trace: Trace, u: float, note: Note = _unnoted
) -> tuple[np.ndarray, Cached]:
    """Queries and the new cache of a layer with a latent."""
    spec, latent = layer.spec, layer.spec.latent
    assert latent is not None
    norm, projected = NormSpec(eps=latent.norm_eps), trace.projected
    if latent.q_rank is None:
        q = projection(layer, "q", trace.x, None, projected["q"], u)
        note("q_proj", q)
    else:
        first = projected["q_a"]
        narrow = layer.norm("q_a_norm", norm, first) * latent.q_factor
        error = projection(layer, "q_a", trace.x, None, first, u)
        note("q_a_proj", error)
        error = normed(layer, "q_a_norm", norm, first, error, u)
        error = factored(np.array(latent.q_factor), narrow, error, u, spec.dtype)
        note("q_latent", error)
        q = projection(layer, "q_b", narrow, error, projected["q"], u)
        note("q_b_proj", q)
    q = layer.split(q, spec.head_dim)
    kv = projection(layer, "kv_a", trace.x, None, projected["kv_a"], u)
    note("kv_a_proj", kv)
    first = projected["kv_a"][..., : latent.kv_rank]
    narrow = normed(layer, "kv_a_norm", norm, first, kv[..., : latent.kv_rank], u)
    new = trace.new(trace.cache["latent"])
    narrow = factored(np.array(latent.kv_factor), new, narrow, u, spec.dtype)
    note("latent", narrow)
    key = _rotated(spec, trace, trace.k, kv[:, None, :, latent.kv_rank :], u)
    rotated = _rotated(spec, trace, trace.q, q[..., latent.nope_dim :], u)
    note("q_rotated", rotated)
    note("k_rotated", key)
    q = np.concatenate((q[..., : latent.nope_dim], rotated), axis=-1)
    q = factored(trace.q_factor, trace.ready_q, q, u, spec.dtype)
    note("q_ready", q)
    return q, {"latent": narrow, "key_rope": key[:, 0]}


def _expanded(
    layer: ReferenceLayer, trace: Trace, cache: Cached, u: float
) -> tuple[np.ndarray, np.ndarray]:
    """Keys and values of every slot, for every key head."""
    grown = {name: trace.placed(error) for name, error in cache.items()}
    if layer.spec.latent is None:
        return layer.expanded(grown)
    nope = layer.spec.latent.nope_dim
    latents = trace.cache["latent"]
    expanded = layer.project("kv_b", latents)
    both = projection(layer, "kv_b", latents, grown["latent"], expanded, u)
    both = layer.split(both, nope + layer.spec.value_head_dim)
    shared = np.repeat(grown["key_rope"][:, None], layer.spec.heads, axis=1)
    return np.concatenate((both[..., :nope], shared), axis=-1), both[..., nope:]


def _rotated(
    spec: AttentionSpec, trace: Trace, x: np.ndarray, error: np.ndarray, u: float
) -> np.ndarray:
    """x1 cos - x2 sin and its twin: errors of x, of cos and sin, of two products and one sum."""
    if spec.rope is None:
        return error
    result = error.copy()
    cos2, sin2 = trace.cos**2, trace.sin**2
    table = (u * spec.rope.attention_factor) ** 2  # cos and sin are stored with error u at most
    first, second = pairs(spec)
    for own, other, to in zip((first, second), (second, first), places(spec), strict=True):
        carried = error[..., own] * cos2 + error[..., other] * sin2
        tables = table * (x[..., own] ** 2 + x[..., other] ** 2)
        rounded = 2 * u**2 * (x[..., own] ** 2 * cos2 + x[..., other] ** 2 * sin2)
        result[..., to] = carried + tables + rounded + 3 * UNDERFLOW[spec.dtype] ** 2
    return result


def _attended(
    layer: ReferenceLayer,
    trace: Trace,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    u: float,
    note: Note,
) -> np.ndarray:
    """Softmax attention, (B, S, H, V).

    An error e_j of the scores changes a head's output by the sum of w_j e_j (value_j - output).
    The e_j share the error of q, so they are not taken as independent but as conspiring:
    Cauchy and Schwarz bound the sum by sqrt(sum w_j e_j^2) sqrt(sum w_j (value_j - output)^2).
    A sink is a slot of value 0 and no error.
    """
    values, spec, total = trace.values, layer.spec, trace.keys.shape[2]
    off = _scores(layer, trace, q, k, u, note)
    np.sqrt(off, out=off)
    moved = moved_by(off, trace)
    # Beyond first order: a score off by e multiplies its weight by exp(e).
    beyond = np.expm1(np.minimum(off, 50.0, out=off), out=off)
    np.square(beyond, out=beyond)
    if note is not _unnoted:
        note("probabilities", _weights(trace, beyond, spec.dtype, u))
    mean, values2, squares = trace.mixed.swapaxes(1, 2), values**2, trace.weights**2
    variance = np.maximum(averaged(trace.weights, values2) - mean**2, 0.0)
    conspiring = np.einsum("bhst,bhst->bhs", trace.weights, beyond)[..., None] * variance
    if moved is not None:
        conspiring = np.maximum(conspiring, moved)
    partial = ACCUMULATOR**2 * total  # of the sum over the slots, as in `summed`
    rounded = u**2 + 8 * ACCUMULATOR**2 + partial
    underflow = UNDERFLOW[spec.dtype] ** 2 * np.sum(values2, axis=2, keepdims=True)
    underflow = np.repeat(underflow, spec.heads // underflow.shape[1], axis=1)
    heads = conspiring + averaged(squares, v + rounded * values2 + vanishing(values2))
    heads += underflow + total * LOST
    heads += stored(mean, u, spec.dtype) + partial * mean**2
    return heads.swapaxes(1, 2)


def _scores(
    layer: ReferenceLayer,
    trace: Trace,
    q: np.ndarray,
    k: np.ndarray,
    u: float,
    note: Note = _unnoted,
) -> np.ndarray:
    """What goes into the softmax, (B, H, S, T): products of q and k, scaled, capped and shifted."""
    spec, ready2 = layer.spec, trace.ready_q**2
    keys2, below = trace.keys**2, UNDERFLOW[spec.dtype] ** 2
    own = q + summed(ready2, spec.head_dim) + vanishing(ready2)
    scores = scored(own, keys2)
    scores += scored(ready2, k + vanishing(keys2))
    scores *= spec.softmax_scale**2
    rounded = np.square(trace.raw_scores)
    rounded *= 2 * u**2
    rounded += spec.softmax_scale**2 * (spec.head_dim * LOST + below) + 2 * below
    scores += rounded
    note("products", scores)
    if spec.softcap is not None:
        scores = _capped(trace, spec.softcap, scores, u, spec.dtype)
    note("scores", scores)
    top = np.max(np.where(trace.weights > 0, trace.scores, -np.inf), axis=-1, keepdims=True)
    shift = np.subtract(trace.scores, np.where(np.isfinite(top), top, 0.0), out=rounded)
    shift *= ACCUMULATOR
    np.square(shift, out=shift)
    shift *= np.isfinite(top)
    shift += scores
    return shift


def _weights(trace: Trace, scores: np.ndarray, dtype: str, u: float) -> np.ndarray:
    """A weight w_j of scores that are off by e: w_j (e_j - sum of w e), of an error in common."""
    together = np.sum(trace.weights * scores, axis=-1, keepdims=True)
    carried = trace.weights**2 * (scores + together)
    rounded = (u**2 + (8 + scores.shape[-1]) * ACCUMULATOR**2) * trace.weights**2
    return carried + rounded + UNDERFLOW[dtype] ** 2


def steady(layer: ReferenceLayer, trace: Trace) -> bool:
    """Whether rounding leaves the softmax where it is: a score that is off by more than STEADY in
    its deviation may make another slot the largest, and nothing that is carried to first order
    bounds that."""
    u = UNIT_ROUNDOFF[layer.spec.dtype]
    q, cache = (_latent if layer.spec.latent is not None else _plain)(layer, trace, u)
    keys, _ = _expanded(layer, trace, cache, u)
    scores = _scores(layer, trace, q, keys, u)
    return bool(np.sqrt(np.max(scores, where=trace.weights > ACCUMULATOR, initial=0.0)) <= STEADY)


def _capped(trace: Trace, softcap: float, error: np.ndarray, u: float, dtype: str) -> np.ndarray:
    """c tanh(s / c): what comes before it is carried by its slope, 1 - tanh(s / c)^2, as is the
    quotient's rounding; those of tanh and of the product are of the capped score."""
    slope = 1 - (trace.scores / softcap) ** 2
    before = error + (u * trace.raw_scores) ** 2 + (softcap * UNDERFLOW[dtype]) ** 2
    return slope**2 * before + 2 * stored(trace.scores, u, dtype)


def _finished(
    layer: ReferenceLayer, trace: Trace, error: np.ndarray, u: float, note: Note
) -> np.ndarray:
    """The heads' norm and gate, (B, S, H * V)."""
    norm, batch, sequence = layer.spec.o_norm, *trace.mixed.shape[:2]
    heads, dtype = trace.mixed, layer.spec.dtype
    if norm is not None:
        shape = (batch, sequence, -1) if norm.over == "all" else heads.shape
        flat = (trace.mixed.reshape(shape), error.reshape(shape))
        error = normed(layer, "o_norm", norm, *flat, u).reshape(heads.shape)
        heads = layer.norm("o_norm", norm, flat[0]).reshape(heads.shape)
    if trace.gate is not None:
        y = layer.project("gate", trace.x)
        logits = projection(layer, "gate", trace.x, None, y, u)
        logits = logits.reshape(trace.gate.shape)
        gate2 = trace.gate**2
        # The derivative of either gate is at most 1; of a sigmoid it is gate (1 - gate).
        steep = 1.0 if layer.spec.gate_kind == "softplus" else gate2 * (1 - trace.gate) ** 2
        gates = steep * logits + stored(trace.gate, u, dtype) + 4 * ACCUMULATOR**2 * gate2
        note("gate", gates)
        product = stored(heads * trace.gate, u, dtype)
        error = (error + vanishing(heads**2)) * gate2 + heads**2 * gates + product
    return error.reshape(batch, sequence, -1)

"""Which calls a dtype can hold: beyond its range PyTorch has no answer to compare with."""

from collections.abc import Iterator

import numpy as np

from rope_export.parity.layer.attending import averaged, scored
from rope_export.parity.layer.reference import ReferenceLayer
from rope_export.parity.layer.trace import Trace
from rope_export.spec import NormSpec

LARGEST = {"float16": 65_504.0, "float32": float(np.finfo(np.float32).max)}
LARGEST["bfloat16"] = 2.0**127 * (2 - 2.0**-7)

ROOM = 8.0
"""How far below the largest number a call stays: a lowering may scale before a product or after
it, and partial sums may be larger than their sum."""

SMALLEST_SQUARE = 2.0**-96
"""Mean square below which a norm divides by what float32 has lost bits of, or by zero."""


def beyond_range(layer: ReferenceLayer, trace: Trace) -> str | None:
    """What leaves the range of the layer's dtype, or of the float32 that sums are taken in, in a
    clause; nothing where the call is within it."""
    with np.errstate(over="ignore", invalid="ignore"):
        sizes = _sizes(layer, trace)
    most = LARGEST[layer.spec.dtype] / ROOM
    for name, size in sizes.items():
        if not size <= most:
            return f"{name} (largest {size:.1e}) leave the range of {layer.spec.dtype}"
    for name, square in _squares(layer, trace).items():
        if not square <= LARGEST["float32"] / ROOM or square < SMALLEST_SQUARE:
            return f"the mean square of {name} ({square:.1e}) leaves the range of float32"
    return None


def _sizes(layer: ReferenceLayer, trace: Trace) -> dict[str, float]:
    """The largest absolute number of what is stored, and of sums with every term's sign gone."""
    weights = {name: np.abs(w) for name, w in layer.weights.items()}
    sizes = {
        "weights": _largest(*weights.values()),
        "inputs": _largest(trace.x, *trace.cache.values()),
    }
    feeds = {"q": trace.x, "k": trace.x, "v": trace.x, "gate": trace.x, "o": trace.heads}
    feeds |= {"q_a": trace.x, "kv_a": trace.x}
    feeds |= {"q_b": trace.projected["q_latent"]} if "q_latent" in trace.projected else {}
    feeds |= {"kv_b": trace.cache["latent"]} if "latent" in trace.cache else {}
    for name, value in feeds.items():
        if f"{name}_proj.weight" in weights:
            bias = weights.get(f"{name}_proj.bias", 0.0)
            sums = np.abs(value) @ weights[f"{name}_proj.weight"].T + bias
            sizes[f"projections {name}"] = _largest(sums)
    keys, values = np.abs(trace.keys), np.abs(trace.values)
    sizes["rotated queries and keys"] = _largest(trace.rotated_q, trace.rotated_k, trace.ready_q)
    sizes["scores"] = _largest(scored(np.abs(trace.ready_q), keys), trace.raw_scores)
    sizes["values"] = _largest(averaged(np.ones_like(trace.weights), values))
    sizes["heads"] = _largest(trace.mixed, trace.heads)
    if trace.gate is not None:
        sizes["gates"] = _largest(trace.gate)
    return sizes


def _squares(layer: ReferenceLayer, trace: Trace) -> dict[str, float]:
    """Of what each norm divides by the mean square and eps: the smallest, or the sum of squares
    where that is too large."""
    squares = {}
    for name, norm, value in _normed(layer, trace):
        with np.errstate(over="ignore", invalid="ignore"):
            sums = np.sum(value**2, axis=-1)
            if norm.kind == "layer":
                value = value - np.mean(value, axis=-1, keepdims=True)
            means = np.mean(value**2, axis=-1) + norm.eps
        largest = _largest(sums)
        fits = largest <= LARGEST["float32"] / ROOM
        squares[name] = float(np.min(means, initial=np.inf)) if fits else largest
    return squares


def _normed(layer: ReferenceLayer, trace: Trace) -> Iterator[tuple[str, NormSpec, np.ndarray]]:
    """Every norm with what it is taken of, along the last axis."""
    spec, latent = layer.spec, layer.spec.latent
    for name, (heads, width) in spec.norm_sizes.items():
        norm = getattr(spec, name)
        value = trace.mixed if name == "o_norm" else trace.projected[name[0]]
        shape = (*value.shape[:2], *((-1,) if norm.over == "all" else (heads, width)))
        yield name, norm, value.reshape(shape)
    if latent is not None:
        norm = NormSpec(eps=latent.norm_eps)
        yield "kv_a_norm", norm, trace.projected["kv_a"][..., : latent.kv_rank]
        if latent.q_rank is not None:
            yield "q_a_norm", norm, trace.projected["q_a"]


def _largest(*values: np.ndarray) -> float:
    """NaN where there is one."""
    return float(np.max([np.max(np.abs(x), initial=0.0) for x in values]))

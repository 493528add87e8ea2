"""How far rounding alone can take a sound implementation from the reference.

Two figures, neither of which looks at anything measured:

The *ceiling* bounds eager PyTorch. Every stored or summed number is off by a factor 1 + d with
|d| <= u, and the d are taken as independent and of mean zero. Carried to first order through the
layer, an output's error is a sum of a_k d_k, and Hoeffding's inequality gives
P(|error| > t u ||a||) <= 2 exp(-t^2 / 2). So `deviations` carries u ||a|| forward, element by
element, and the ceiling is t times that, with t such that all elements of an output together
exceed it with probability at most ODDS. Numbers are stored in the artifact's dtype, unit roundoff
u; products are summed in float32 or better, unit roundoff v, by every CPU kernel of PyTorch.
Source: Higham and Mary, A New Approach to Probabilistic Rounding Error Analysis, SIAM J. Sci.
Comput. 41 (2019), and Ipsen and Zhou, Probabilistic Error Analysis for Inner Products, SIAM J.
Matrix Anal. Appl. 41 (2020).

The *floor* is what a sound implementation may be off by where eager happens to be nearly exact:
the root mean square of the same sum, see `floors`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rope_export.parity.reference import ReferenceLayer, Trace, pairs
from rope_export.spec import AttentionSpec

UNIT_ROUNDOFF = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Half the distance from 1 to the next number: the largest relative error of one rounding."""

ACCUMULATOR = UNIT_ROUNDOFF["float32"]

UNDERFLOW = {"float32": 0.0, "float16": 2.0**-25, "bfloat16": 0.0}
"""Absolute error of storing a softmax weight, which may be as small as float16's subnormals."""

ODDS = 1e-9
"""Probability that rounding alone takes a sound eager output beyond its ceiling."""

ELEMENTS = 10**8
"""More elements than an output has in any case."""

TIMES = math.sqrt(2 * math.log(2 * ELEMENTS / ODDS))
"""t: no element of an output is off by more than t u ||a||, but for ODDS; about 8.9."""


STORED = 9
"""Values stored one after the other on the longest way through the layer: projection, cosine,
product, turned query, score, scaled score, weight, head, output."""


def longest_reduction(spec: AttentionSpec, total: int) -> int:
    """Roundings at the dtype's precision, one upon the other, in the longest chain.

    In float32 that is the longest sum: a projection's, or that of the weighted values. Narrower
    dtypes are summed in float32, and only what is stored is rounded to them.
    """
    if UNIT_ROUNDOFF[spec.dtype] > ACCUMULATOR:
        return STORED
    return max(spec.hidden_size, spec.heads * spec.head_dim, total)


def floors(spec: AttentionSpec, total: int, ceilings: Mapping[str, float]) -> dict[str, float]:
    """c u sqrt(K) for each metric: what rounding is expected to do to one sound implementation.

    With c = 1 it is u ||a|| for a chain of K equal roundings: the K terms of a sum added one after
    the other are at u sqrt(K / 6) in the root mean square, and the rest covers how the errors of a
    few elements spread around that. Large scores amplify the rounding of what they are made of;
    then c is what the call's own deviation asks for: `ceilings` / t is u ||a|| of this call, in
    which u stands for every rounding's error, and the root mean square of that error over numbers
    of any mantissa is u / sqrt(6).
    """
    plain = UNIT_ROUNDOFF[spec.dtype] * math.sqrt(longest_reduction(spec, total))
    return {name: max(plain, x / TIMES / math.sqrt(6)) for name, x in ceilings.items()}


@dataclass(frozen=True, kw_only=True)
class Ceiling:
    """An a-priori bound for each element of each output; same shapes as the outputs."""

    attention_output: np.ndarray
    present_key: np.ndarray
    present_value: np.ndarray


def ceiling(layer: ReferenceLayer, trace: Trace) -> Ceiling:
    """Bounds on eager's absolute errors for this call; those of the past entries are 0."""
    output, key, value = deviations(layer, trace)
    past = trace.keys.shape[2] - trace.turned_k.shape[2]
    grown = ((0, 0), (0, 0), (past, 0), (0, 0))
    return Ceiling(
        attention_output=TIMES * output,
        present_key=TIMES * np.pad(key, grown),
        present_value=TIMES * np.pad(value, grown),
    )


def deviations(layer: ReferenceLayer, trace: Trace) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """u ||a|| for the attention output, the new keys and the new values. Squares are carried."""
    spec, u = layer.spec, UNIT_ROUNDOFF[layer.spec.dtype]
    none = np.zeros_like(trace.x)
    q, k, v = (layer.split(_projection(layer, name, trace.x, none, u)) for name in "qkv")
    q, k = _turned(spec, trace, trace.q, q, u), _turned(spec, trace, trace.k, k, u)
    past = trace.keys.shape[2] - k.shape[2]
    grown = ((0, 0), (0, 0), (past, 0), (0, 0))
    heads = _attended(layer, trace, q, np.pad(k, grown), np.pad(v, grown), u)
    output = _projection(layer, "o", trace.heads, heads, u)
    return np.sqrt(output), np.sqrt(k), np.sqrt(v)


def _projection(
    layer: ReferenceLayer, name: str, x: np.ndarray, error: np.ndarray, u: float
) -> np.ndarray:
    """x W^T + b: the error of x carried over, n partial sums, and the stored result."""
    squares = layer.weights[f"{name}_proj.weight"].T ** 2
    y = layer.project(name, x)
    return error @ squares + _sum(x**2 @ squares, x.shape[-1]) + 2 * (u * y) ** 2


def _sum(squares: np.ndarray, terms: int) -> np.ndarray:
    """n roundings of partial sums, none of them larger than the terms' own root sum of squares
    in the mean."""
    return ACCUMULATOR**2 * terms * squares


def _turned(
    spec: AttentionSpec, trace: Trace, x: np.ndarray, error: np.ndarray, u: float
) -> np.ndarray:
    """x1 cos - x2 sin and its twin: errors of x, of cos and sin, of two products and one sum."""
    first, second = pairs(spec)
    turned = error.copy()
    cos2, sin2 = trace.cos**2, trace.sin**2
    table = (u * spec.rope.attention_factor) ** 2  # cos and sin are stored with error u at most
    for here, there in ((first, second), (second, first)):
        carried = error[..., here] * cos2 + error[..., there] * sin2
        tables = table * (x[..., here] ** 2 + x[..., there] ** 2)
        rounded = 2 * u**2 * (x[..., here] ** 2 * cos2 + x[..., there] ** 2 * sin2)
        turned[..., here] = carried + tables + rounded
    return turned


def _attended(
    layer: ReferenceLayer, trace: Trace, q: np.ndarray, k: np.ndarray, v: np.ndarray, u: float
) -> np.ndarray:
    """Softmax attention, (B, S, H * D).

    An error e_j of the scores changes a head's output by the sum of w_j e_j (value_j - output).
    The e_j share the error of q, so they are not taken as independent but as conspiring:
    Cauchy and Schwarz bound the sum by sqrt(sum w_j e_j^2) sqrt(sum w_j (value_j - output)^2).
    """
    spread = layer.shared
    keys, values = spread(trace.keys), spread(trace.values)
    k, v = spread(k), spread(v)
    scale, total = layer.spec.softmax_scale, keys.shape[2]
    carried = q @ (keys**2).swapaxes(2, 3) + trace.turned_q**2 @ k.swapaxes(2, 3)
    dots = _sum(trace.turned_q**2 @ (keys**2).swapaxes(2, 3), layer.spec.head_dim)
    top = np.max(np.where(trace.weights > 0, trace.scores, -np.inf), axis=-1, keepdims=True)
    shift = np.where(np.isfinite(top), trace.scores - top, 0.0)
    scores = scale**2 * (carried + dots) + 2 * (u * trace.scores) ** 2 + (ACCUMULATOR * shift) ** 2
    # Beyond first order: a score off by e multiplies its weight by exp(e).
    scores = np.expm1(np.minimum(np.sqrt(scores), 50.0)) ** 2
    mean = trace.weights @ values
    variance = np.maximum(trace.weights @ values**2 - mean**2, 0.0)
    conspiring = np.sum(trace.weights * scores, axis=-1, keepdims=True) * variance
    squares = trace.weights**2
    weighted = squares @ (values**2)
    rounded = (u**2 + 8 * ACCUMULATOR**2) * weighted + _sum(weighted, total) + _sum(mean**2, total)
    underflow = UNDERFLOW[layer.spec.dtype] ** 2 * np.sum(values**2, axis=2, keepdims=True)
    heads = conspiring + squares @ v + rounded + underflow + (u * mean) ** 2
    return heads.swapaxes(1, 2).reshape(*trace.x.shape[:2], -1)

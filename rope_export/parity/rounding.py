"""Roundings: their units, how many lie on the longest way through a layer, and what they are
expected to do, which is the floor of a tolerance."""

import math
from collections.abc import Mapping

from rope_export.parity.metrics import SCALED_MAX
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
"""Values stored one after the other on the longest way through a plain layer: projection, cosine,
product, turned query, score, scaled score, weight, head, output."""


def stored(spec: AttentionSpec) -> int:
    """As STORED, with what the layer has beyond a plain one."""
    more = {
        1: (spec.q_norm or spec.k_norm, spec.o_norm, spec.position_scale),
        3: (spec.softcap, spec.gate),
        4: (spec.latent,),
    }
    return STORED + sum(n * sum(bool(x) for x in there) for n, there in more.items())


def longest_reduction(spec: AttentionSpec, total: int) -> int:
    """Roundings at the dtype's precision, one upon the other, in the longest chain.

    In float32 that is the longest sum: a projection's, or that of the weighted values. Narrower
    dtypes are summed in float32, and only what is stored is rounded to them.
    """
    if UNIT_ROUNDOFF[spec.dtype] > ACCUMULATOR:
        return stored(spec)
    return max(spec.hidden_size, spec.heads * spec.value_head_dim, total)


def floors(
    spec: AttentionSpec, total: int, ceilings: Mapping[str, float], elements: int
) -> dict[str, float]:
    """c u sqrt(K) for each metric: what rounding is expected to do to one sound implementation.

    With c = 1 it is u ||a|| for a chain of K equal roundings: the K terms of a sum added one after
    the other are at u sqrt(K / 6) in the root mean square, and the rest covers how the errors of a
    few elements spread around that. Where the call amplifies rounding (large scores; sums that are
    clamped to less than what they were made of) c is what its own deviation asks for: `ceilings`
    / t is u ||a|| of this call, in which u stands for every rounding's error, and the root mean
    square of that error over numbers of any mantissa is u / sqrt(6). The largest of N such
    elements is expected at up to sqrt(2 ln 2N) times that, as for normal ones.
    Source: Boucheron, Lugosi and Massart, Concentration Inequalities, 2013, theorem 2.5.

    ceilings: of the runtime's own roundings, which are more than eager's where its kernels round
    activations to int8. elements: N, of the part of the output that is judged.
    """
    plain = UNIT_ROUNDOFF[spec.dtype] * math.sqrt(longest_reduction(spec, total))
    spread = {SCALED_MAX: math.sqrt(2 * math.log(2 * max(elements, 1)))}
    return {
        name: max(plain, spread.get(name, 1.0) * x / TIMES / math.sqrt(6))
        for name, x in ceilings.items()
    }

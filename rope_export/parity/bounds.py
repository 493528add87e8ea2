"""The acceptance rule, and the figures in it that look at nothing measured.

A runtime's error may be twice eager PyTorch's own, or twice the *floor*, whichever is more; and
eager's may not be beyond the *ceiling*, an a-priori bound on rounding. The ceiling is what the
subject derives for its own computation (`layer.deviations` for an attention layer): with u the unit
roundoff and ||a|| the root of the sum of squares of what each rounding is multiplied by on its way
to an output, no element of that output is off by more than t u ||a||, but for ODDS.
Source: Higham and Mary, A New Approach to Probabilistic Rounding Error Analysis, SIAM J. Sci.
Comput. 41 (2019), and Ipsen and Zhou, Probabilistic Error Analysis for Inner Products, SIAM J.
Matrix Anal. Appl. 41 (2020).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from rope_export.parity.metrics import SCALED_MAX

UNIT_ROUNDOFF = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Half the distance from 1 to the next number: the largest relative error of one rounding."""

ACCUMULATOR = UNIT_ROUNDOFF["float32"]

SMALLEST = 2.0**-126
"""The smallest normal number of float32 and bfloat16. What is smaller may be taken for zero:
processors can be told to, and instructions for products of bfloat16 always do."""

UNDERFLOW = {
    "float32": math.sqrt(6) * SMALLEST,
    "float16": math.sqrt(2) * 2.0**-25,
    "bfloat16": math.sqrt(6) * SMALLEST,
}
"""Absolute error of storing a number below the normal ones: half a step of float16's subnormal
ones; of the others the number itself. `floors` takes the root mean square of an error for what
stands here over sqrt(6), which is right for roundings of numbers of any mantissa: one that is even
over a step of fixed size is larger by sqrt(2), the number itself by sqrt(6)."""

ODDS = 1e-9
"""Probability that rounding alone takes a sound eager output beyond its ceiling."""

ELEMENTS = 10**8
"""More elements than an output has in any case."""

TIMES = math.sqrt(2 * math.log(2 * ELEMENTS / ODDS))
"""t: no element of an output is off by more than t u ||a||, but for ODDS; about 8.9."""


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What the errors of one output may be, by metric: eager's `ceilings`, and the `floors` below
    which no runtime's tolerance falls."""

    ceilings: Mapping[str, float]
    floors: Mapping[str, float]


def tolerance(eager_error: float, floor: float) -> float:
    """What the error of a runtime may be: twice eager's, or twice what rounding is expected to do
    to a sound implementation where eager happens to be nearly exact."""
    return 2 * max(eager_error, floor)


def floors(
    dtype: str, roundings: int, ceilings: Mapping[str, float], elements: int
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

    dtype: of the artifact, which has u. roundings: K, one upon the other in the longest chain.
    ceilings: of the runtime's own roundings, which are more than eager's where its kernels round
    activations to int8. elements: N, of the part of the output that is judged.
    """
    plain = UNIT_ROUNDOFF[dtype] * math.sqrt(roundings)
    spread = {SCALED_MAX: math.sqrt(2 * math.log(2 * max(elements, 1)))}
    return {
        name: max(plain, spread.get(name, 1.0) * x / TIMES / math.sqrt(6))
        for name, x in ceilings.items()
    }

"""How many roundings follow one another on the longest way through an attention layer."""

import numpy as np

from rope_export.parity.bounds import ACCUMULATOR, UNIT_ROUNDOFF, Bounds, floors
from rope_export.parity.metrics import errors
from rope_export.spec import AttentionSpec

STORED = 9
"""Values stored one after the other on the longest way through a plain layer: projection, cosine,
product, rotated query, score, scaled score, weight, head, output."""


def stored(spec: AttentionSpec) -> int:
    """As STORED, with what the layer has beyond a plain one."""
    more = {
        1: (spec.q_norm or spec.k_norm, spec.o_norm, spec.position_scale),
        3: (spec.softcap, spec.gate),
        4: (spec.latent,),
    }
    return STORED + sum(n * sum(bool(x) for x in parts) for n, parts in more.items())


def longest_reduction(spec: AttentionSpec, total: int) -> int:
    """Roundings at the dtype's precision, one upon the other, in the longest chain.

    In float32 that is the longest sum: a projection's, or that of the weighted values. Narrower
    dtypes are summed in float32, and only what is stored is rounded to them.
    """
    if UNIT_ROUNDOFF[spec.dtype] > ACCUMULATOR:
        return stored(spec)
    return max(spec.hidden_size, spec.heads * spec.value_head_dim, total)


def bounds_of(
    spec: AttentionSpec, total: int, rounding: tuple[np.ndarray, np.ndarray], expected: np.ndarray
) -> Bounds:
    """Bounds on the errors of an output.

    total: slots in the longest call. rounding: how far roundings alone may take each element,
    eager's and a runtime's. expected: the elements themselves.
    """
    eager, runtime = rounding
    ceilings = errors(eager, expected)
    rough = ceilings if runtime is eager else errors(runtime, expected)
    roundings = longest_reduction(spec, total)
    return Bounds(ceilings=ceilings, floors=floors(spec.dtype, roundings, rough, expected.size))

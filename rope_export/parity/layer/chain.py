"""How many roundings follow one another on the longest way through an attention layer."""

from rope_export.parity.bounds import ACCUMULATOR, UNIT_ROUNDOFF
from rope_export.spec import AttentionSpec

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

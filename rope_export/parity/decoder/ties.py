"""How many tokens of a greedy text may be another one than the reference's, its logit being near.

Rounding moves two logits that are near each other past one another, so that a sound runtime now and
then takes the second. How often is known from the reference alone, which has the distance of every
token's largest logit from the next ones.
"""

import math

import numpy as np
import torch

from rope_export.parity.bounds import ODDS, UNIT_ROUNDOFF
from rope_export.parity.decoder.verdicts import LogitTolerance

NEAR = 0.01
"""Share of tokens that may be another near one, where the artifact's dtype is as fine as float16
or finer."""

KEPT = 64
"""The largest logits of a token that are looked at; rounding takes none of the others."""


def near_ties_allowed(
    largest: np.ndarray, norms: np.ndarray, tolerance: LogitTolerance, dtype: str
) -> float:
    """The share of tokens that may be another near one.

    Logits of bfloat16 are rounded eight times as coarsely as those of float16, and a model whose
    logits are flat has many ties then: there it is what the margins of the reference make likely,
    if that is more than 1 %.
    largest (tokens, KEPT): the largest logits of the reference, in descending order. norms
    (tokens): of all logits of each.
    """
    if UNIT_ROUNDOFF[dtype] <= UNIT_ROUNDOFF["float16"]:
        return NEAR
    expected = float(np.sum(_changed(largest, norms, tolerance, dtype)))
    return max(NEAR, most(expected) / len(largest))


def _changed(
    largest: np.ndarray, norms: np.ndarray, tolerance: LogitTolerance, dtype: str
) -> np.ndarray:
    """(tokens): the probability that rounding has a sound implementation take another token, at
    most.

    The errors of two logits are taken as independent and normal, each in the root mean square half
    of what a row allows, which is twice what is expected of a sound implementation; the largest
    logits are stored with larger errors than the others, u / sqrt(6) of themselves. The first
    logit falls below the one that is d below it with the probability of a normal difference above
    d; that of any is at most the sum.
    """
    stored = (UNIT_ROUNDOFF[dtype] * largest[:, 0]) ** 2 / 6
    spread = np.sqrt(2 * ((tolerance.mean / 2 * norms) ** 2 + stored))[:, None]
    margins = torch.from_numpy((largest[:, :1] - largest[:, 1:]) / spread)
    chances: np.ndarray = torch.special.ndtr(-margins).sum(dim=-1).clamp(max=1.0).numpy()
    return chances


def most(expected: float) -> int:
    """The largest number of events of which so many are expected that is not less likely than
    ODDS, by Chernoff's bound of independent ones: P(X >= k) <= exp(k - m - k ln(k / m)).

    Source: Boucheron, Lugosi and Massart, Concentration Inequalities, 2013, section 2.2.
    """
    count = max(1, math.ceil(expected))
    while expected and count - expected - count * math.log(count / expected) > math.log(ODDS):
        count += 1
    return count - 1

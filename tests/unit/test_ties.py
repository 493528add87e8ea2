"""How many near ties a greedy text may have: sound runtimes pass, and those that are not fail."""

import math

import numpy as np
import pytest

from rope_export.parity.bounds import ODDS
from rope_export.parity.decoder.ties import KEPT, NEAR, most, near_ties_allowed
from rope_export.parity.decoder.verdicts import LogitTolerance

TOKENS, VOCABULARY = 512, 2000
MEAN = 1e-3
"""What a row allows of one logit, of the norm of its token's; the norm is sqrt(VOCABULARY)."""


def logits(seed: int) -> np.ndarray:
    """Flat ones of variance 1, as those of a model with drawn weights."""
    return np.random.default_rng(seed).standard_normal((TOKENS, VOCABULARY))


def allowed(exact: np.ndarray, dtype: str, mean: float = MEAN) -> float:
    largest = np.sort(exact, axis=-1)[:, : -KEPT - 1 : -1]
    tolerance = LogitTolerance(largest=5 * mean, mean=mean)
    return near_ties_allowed(largest, np.linalg.norm(exact, axis=-1), tolerance, dtype)


def ties(exact: np.ndarray, error: float, seed: int) -> float:
    """The share of tokens that a runtime with such errors takes another one for."""
    noise = np.random.default_rng(1000 + seed).standard_normal(exact.shape)
    noisy = exact + error * np.linalg.norm(exact, axis=-1, keepdims=True) * noise
    return float(np.mean(np.argmax(noisy, axis=-1) != np.argmax(exact, axis=-1)))


def test_sound_draws_raise_no_alarm_and_larger_errors_do() -> None:
    """Errors as large as is expected, as large as a row allows, and eight times as expected."""
    for seed in range(6):
        exact = logits(seed)
        most_allowed = allowed(exact, "bfloat16")
        assert ties(exact, MEAN / 2, seed) <= ties(exact, MEAN, seed) <= most_allowed
        assert ties(exact, 4 * MEAN, seed) > 1.3 * most_allowed


def test_one_percent_is_allowed_where_more_is_not_likely() -> None:
    exact = logits(0)
    assert allowed(exact, "bfloat16") > NEAR
    assert allowed(exact, "float16") == allowed(exact, "float32") == NEAR
    exact[:, 0] += 10  # no token is near another
    assert allowed(exact, "bfloat16") == NEAR


@pytest.mark.parametrize("expected", [0.1, 1.0, 10.0, 100.0])
def test_no_more_than_chance_explains(expected: float) -> None:
    """Against the exact tail of Poisson's law, which independent events of small chances have."""
    terms = [math.exp(k * math.log(expected) - expected - math.lgamma(k + 1)) for k in range(400)]
    tail = np.cumsum(terms[::-1])[::-1]
    exact = int(np.argmax(tail < ODDS)) - 1
    assert exact <= most(expected) <= exact + 2 + 0.05 * expected
    assert most(0.0) == 0

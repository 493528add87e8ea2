"""Which token follows: the most likely one, or one that is drawn."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rope_export.errors import InputError

LIKELY = 1024
"""Tokens among which a nucleus is looked for first: sorting a whole vocabulary takes as long as a
small model's step."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are chosen.

    temperature: 0 takes the most likely token; others divide the logits before one is drawn.
    top_p: draws among the most likely tokens whose probabilities add up to this. seed: of the
    draws; others each time unless given.
    Raises: InputError for values out of range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise InputError(f"`temperature`={self.temperature}: it must be 0 or more.")
        if not 0 < self.top_p <= 1:
            raise InputError(f"`top_p`={self.top_p}: it must be above 0 and at most 1.")
        if self.seed is not None and self.seed < 0:
            raise InputError(f"`seed`={self.seed}: it must be 0 or more.")
        if self.temperature == 0 and self.top_p < 1:
            raise InputError(
                f"`top_p`={self.top_p}: nothing is drawn at `temperature`=0. Give a temperature."
            )

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


GREEDY = Sampling()


class Chooser:
    """Chooses the next token of each row; what a row draws does not depend on the others."""

    def __init__(self, sampling: Sampling, rows: int) -> None:
        self._sampling = sampling
        seeds = np.random.SeedSequence(sampling.seed).spawn(rows)
        self._draws = [np.random.default_rng(seed) for seed in seeds]

    def choose(self, logits: np.ndarray) -> list[int]:
        """logits: (rows, vocabulary), float. Returns: a token for each row."""
        if self._sampling.greedy:
            return likeliest(logits)
        return [self._drawn(row, draw) for row, draw in zip(logits, self._draws, strict=True)]

    def _drawn(self, logits: np.ndarray, draw: np.random.Generator) -> int:
        tokens, chances = nucleus(logits, self._sampling.temperature, self._sampling.top_p)
        steps = np.cumsum(chances)
        at = int(np.searchsorted(steps, draw.random() * steps[-1], side="right"))
        return int(tokens[min(at, len(tokens) - 1)])


def likeliest(logits: np.ndarray) -> list[int]:
    """The most likely token of each row of (rows, vocabulary).

    Raises: InputError for logits that hold a NaN.
    """
    rows = plain_floats(logits)
    tokens = [int(row.argmax()) for row in rows]
    for row, token in zip(rows, tokens, strict=True):
        _check_number(row[token])  # a NaN is taken for the largest
    return tokens


def _check_number(largest: float) -> None:
    if np.isnan(largest):
        raise InputError(
            "the logits hold a NaN: the decoder's numbers have left its dtype's range, or its "
            "weights are damaged. Verify it, or export it in another dtype."
        )


def nucleus(logits: np.ndarray, temperature: float, top_p: float) -> tuple[np.ndarray, np.ndarray]:
    """The most likely tokens whose probabilities add up to `top_p`, in falling order, and how
    likely each is beside the others.

    logits: (vocabulary). With a `top_p` of 1 all tokens, as they are numbered.
    Raises: InputError for logits that hold a NaN.
    Source: Holtzman et al., arXiv:1904.09751, section 3.1.
    """
    floats = plain_floats(logits)
    _check_number(floats.max())
    # As differences, of which the largest is 0 at any temperature.
    with np.errstate(over="ignore"):
        scaled = (floats - floats.max()) / max(temperature, float(np.finfo(np.float32).tiny))
    if top_p == 1:
        return np.arange(len(scaled)), np.exp(scaled.astype(np.float64))
    whole = float(np.exp(scaled).sum(dtype=np.float64))
    order = _most_likely(scaled, LIKELY)
    chances = np.exp(scaled[order].astype(np.float64)) / whole
    if chances.sum() < top_p:
        order = _most_likely(scaled, len(scaled))
        chances = np.exp(scaled[order].astype(np.float64)) / whole
    before = np.cumsum(chances) - chances
    kept = before < top_p
    return order[kept], chances[kept]


def _most_likely(scores: np.ndarray, count: int) -> np.ndarray:
    """The places of the `count` largest, in falling order."""
    if count < len(scores):
        chosen = np.argpartition(scores, -count)[-count:]
        return chosen[np.argsort(-scores[chosen], kind="stable")]
    return np.argsort(-scores, kind="stable")


def plain_floats(logits: np.ndarray) -> np.ndarray:
    """Logits in a dtype that numpy compares quickly: bfloat16 and float16 as float32."""
    return logits if logits.dtype in (np.float32, np.float64) else logits.astype(np.float32)


def padded(rows: Sequence[Sequence[int]], *, left: bool) -> tuple[np.ndarray, np.ndarray]:
    """Rows of tokens as one array, int64 (rows, longest), and which of it they fill, bool."""
    longest = max(map(len, rows))
    tokens = np.zeros((len(rows), longest), np.int64)
    filled = np.zeros(tokens.shape, bool)
    for at, row in enumerate(rows):
        where = slice(longest - len(row), None) if left else slice(None, len(row))
        tokens[at, where], filled[at, where] = row, True
    return tokens, filled

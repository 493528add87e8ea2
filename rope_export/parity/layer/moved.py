"""The effect of scores that are off by so much that other slots may win."""

import numpy as np

from rope_export.parity.layer.trace import Trace

LARGE = 0.5
"""Error of a score from which on what it moves is not taken to first order."""


def moved_by(errors: np.ndarray, trace: Trace) -> np.ndarray | None:
    """By how much, squared, the errors of a query's scores can move the mean of the values,
    (B, H, S, V), where they are large; 0 where they are not. None if none is.

    errors: of the scores, (B, H, S, T). Scores that are each off by e at most change a softmax by
    tanh(e / 2) in total variation, which moves a mean of values by that share of their spread at
    most; tanh(e) leaves room for errors that are larger than e, their deviation. To first order in
    e other bounds are closer; this one holds where rounding to int8 moves large scores by more
    than slots are apart.
    """
    values, seen = trace.values, trace.weights > 0
    largest = np.max(np.where(seen, errors, 0.0), axis=-1, keepdims=True)
    if not np.any(largest > LARGE):
        return None
    batch, groups, total, _ = values.shape
    slots = seen.max(axis=2).reshape(batch, groups, -1, total, 1).max(axis=2)
    maximum = np.max(np.where(slots, values, -np.inf), axis=2, keepdims=True, initial=-np.inf)
    minimum = np.min(np.where(slots, values, np.inf), axis=2, keepdims=True, initial=np.inf)
    spread = np.where(slots.any(axis=2, keepdims=True), maximum - minimum, 0.0)
    every = np.repeat(spread, seen.shape[1] // groups, axis=1)
    moved: np.ndarray = np.where(largest > LARGE, (np.tanh(largest) * every) ** 2, 0.0)
    return moved

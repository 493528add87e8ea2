"""How far an output is from what it should be, in the two ways that are judged."""

import numpy as np

RELATIVE = "relative L2"
SCALED_MAX = "scaled max"
METRICS = (RELATIVE, SCALED_MAX)


def errors(difference: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """Norm of `difference` over that of `expected`: Euclidean, and the largest element.

    A difference of zero is no error, whatever was expected; anything not finite stays not finite.
    """
    by_metric = {}
    for metric, norm in zip(METRICS, (_euclidean, _largest), strict=True):
        size, scale = norm(difference), norm(expected)
        by_metric[metric] = 0.0 if size == 0 else size / scale if scale else float("inf")
    return by_metric


def _euclidean(values: np.ndarray) -> float:
    return float(np.linalg.norm(values.ravel()))


def _largest(values: np.ndarray) -> float:
    return float(np.max(np.abs(values), initial=0.0))

"""What one operation carries over of its operands' rounding errors, and adds of its own.

All errors are (u ||a||)^2, as in `deviations`.
"""

import numpy as np

from rope_export.parity.bounds import ACCUMULATOR, SMALLEST, UNDERFLOW
from rope_export.parity.layer.reference import ReferenceLayer
from rope_export.spec import NormSpec

LOST = UNDERFLOW["float32"] ** 2
"""A product or a partial sum in float32 that vanishes."""

INT8 = 127
"""Largest number that an activation is rounded to, where a kernel multiplies in int8."""


def projection(
    layer: ReferenceLayer,
    name: str,
    x: np.ndarray,
    error: np.ndarray | None,
    y: np.ndarray,
    u: float,
) -> np.ndarray:
    """y = x W^T + b: the error of x, if it has any, carried over, n partial sums, and the stored
    result."""
    own = summed(x**2, x.shape[-1])
    if error is not None:
        own += error
    if name in layer.int8_blocks:
        own += _rounded_to_int8(x, layer.int8_blocks[name])
    squares = layer.weights[f"{name}_proj.weight"].T ** 2
    carried = (own + vanishing(x**2)) @ squares
    if np.min(squares, initial=1.0) < SMALLEST**2:
        carried += x**2 @ vanishing(squares)
    return carried + x.shape[-1] * LOST + 2 * stored(y, u, layer.spec.dtype)


def stored(y: np.ndarray, u: float, dtype: str) -> np.ndarray:
    """One rounding of y to the dtype, which ends in subnormal numbers."""
    result: np.ndarray = (u * y) ** 2 + UNDERFLOW[dtype] ** 2
    return result


def vanishing(squares: np.ndarray) -> np.ndarray:
    """Operands, squared, that an operation may take for zero, as errors."""
    return np.where(squares < SMALLEST**2, 6 * squares, 0.0)


def _rounded_to_int8(x: np.ndarray, block: int) -> np.ndarray:
    """Twice half a step, squared: each block of the last axis has the step that its largest needs.

    An error that is even over a step of fixed size is half of it over sqrt(3) in the root mean
    square, where `floors` divides by sqrt(6), which is right for numbers of any mantissa.
    """
    width = x.shape[-1]
    padded = np.pad(np.abs(x), [(0, 0)] * (x.ndim - 1) + [(0, -width % block)])
    largest = padded.reshape(*x.shape[:-1], -1, block).max(axis=-1)
    return np.repeat(2 * (largest / INT8 / 2) ** 2, block, axis=-1)[..., :width]


def summed(squares: np.ndarray, terms: int) -> np.ndarray:
    """n roundings of partial sums, none of them larger than the terms' own root sum of squares
    in the mean."""
    return ACCUMULATOR**2 * terms * squares


def factored(
    factor: np.ndarray, y: np.ndarray, error: np.ndarray, u: float, dtype: str
) -> np.ndarray:
    """y = factor * x in float32, cast last; a factor of 1 is no rounding."""
    rounded = stored(y, u, dtype) + 4 * (ACCUMULATOR * y) ** 2 + factor**2 * LOST
    return error * factor**2 + np.where(factor == 1, 0.0, rounded)


def normed(
    layer: ReferenceLayer, name: str, norm: NormSpec, x: np.ndarray, error: np.ndarray, u: float
) -> np.ndarray:
    """y = w x / r with r the root mean square of n numbers: dy is w dx / r, and for the change of
    r, w x (sum of x dx) / (n r^3). The two are of opposite sign, so their squares add up to more.
    """
    y, n = layer.norm(name, norm, x), x.shape[-1]
    if norm.kind == "layer":
        x = x - x.mean(axis=-1, keepdims=True)
        error = error + error.mean(axis=-1, keepdims=True) / n
    error = error + vanishing(x**2)
    inverse = 1 / (np.mean(x**2, axis=-1, keepdims=True) + norm.eps)
    weights = norm.offset + layer.weights[f"{name}.weight"] if norm.weight else 1.0
    together = np.sum(x**2 * error, axis=-1, keepdims=True) / n**2
    carried = weights**2 * (inverse * error + x**2 * inverse**3 * together)
    wide = (n + 8) * (weights**2 * x**2 * inverse + y**2)
    return carried + ACCUMULATOR**2 * wide + stored(y, u, layer.spec.dtype)

"""Softmax attention over the slots of a cache in float64."""

import numpy as np

Float64 = np.ndarray


def written(cache: np.ndarray, new: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """`cache` (B, ..., T, D) itself, with `new` (B, ..., S, D) from slot `starts` (B,) on."""
    for row, values, at in zip(cache, new, starts, strict=True):
        row[..., at : at + new.shape[-2], :] = values
    return cache


def scored(q: Float64, keys: Float64) -> Float64:
    """q (B, H, S, D) by the keys (B, G, T, D) of its group: (B, H, S, T)."""
    return _by_group(q, keys.swapaxes(2, 3))


def averaged(weights: Float64, values: Float64) -> Float64:
    """Values (B, G, T, V) by the weights (B, H, S, T) of each head: (B, H, S, V)."""
    return _by_group(weights, values)


def _by_group(of_heads: Float64, of_groups: Float64) -> Float64:
    """Matrix products of (B, H, S, N) with (B, G, N, M), H / G heads with each: (B, H, S, M)."""
    batch, heads, rows, inner = of_heads.shape
    groups = of_groups.shape[1]
    together = of_heads.reshape(batch, groups, heads // groups * rows, inner) @ of_groups
    return together.reshape(batch, heads, rows, -1)


def softmax(scores: Float64, visible: np.ndarray, sinks: Float64 | None) -> Float64:
    """Weights over the visible slots, and the sink of each head where it has one.

    A row that has neither is zero.
    """
    shifted = np.where(visible, scores, -np.inf)
    top = np.max(shifted, axis=-1, keepdims=True)
    if sinks is not None:
        top = np.maximum(top, sinks[:, None, None])
    top = np.where(np.isfinite(top), top, 0.0)
    shifted -= top
    powers: Float64 = np.exp(shifted, out=shifted)
    total = powers.sum(axis=-1, keepdims=True)
    if sinks is not None:
        total = total + np.exp(sinks[:, None, None] - top)
    powers /= np.where(total == 0, 1.0, total)
    return powers

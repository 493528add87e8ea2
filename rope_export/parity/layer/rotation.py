"""Which features are a rotary pair, and the angles that they are rotated by."""

import numpy as np

from rope_export.spec import AttentionSpec


def pairs(spec: AttentionSpec) -> tuple[np.ndarray, np.ndarray]:
    """The first and the second feature of each rotary pair, before the rotation."""
    if spec.rope is None:
        return np.arange(0), np.arange(0)
    at = np.arange(spec.rope.rotary_dim // 2)
    if spec.rope.layout == "half_split":
        return at, at + spec.rope.rotary_dim // 2
    return 2 * at, 2 * at + 1


def places(spec: AttentionSpec) -> tuple[np.ndarray, np.ndarray]:
    """Where the two features of each pair are after the rotation."""
    first, second = pairs(spec)
    if spec.rope is not None and spec.rope.layout == "permuted":
        return first // 2, first // 2 + len(first)
    return first, second


def centred(position_ids: np.ndarray) -> np.ndarray:
    """Float32 angles at frequency 1 of patches (axes, B, S) in an image from -1 to 1."""
    size = (1 + position_ids.max(axis=(1, 2), keepdims=True)).astype(np.float32)
    half, one, two = np.float32(0.5), np.float32(1), np.float32(2)
    from_centre = two * ((position_ids.astype(np.float32) + half) / size) - one
    return np.where(position_ids < 0, np.float32(0), np.float32(2 * np.pi) * from_centre)

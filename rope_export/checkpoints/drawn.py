"""Weights drawn from a seed, for a config without a checkpoint."""

import math
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from rope_export.spec import AttentionSpec


def drawn_weights(spec: AttentionSpec, seed: int, layer: int = 0) -> dict[str, Tensor]:
    """Normal weights of variance 1 / in_features, biases of variance 1 / 4, norms near 1, sinks of
    variance 1, in the spec's dtype.

    With them q, k and v of a unit normal input are unit normal, and the scores spread by about 1,
    so that no part of the layer hides behind another. Each tensor has a stream of its own, the
    same on every machine.
    """
    weights = {}
    for name, shape in spec.weight_shapes.items():
        stream = np.random.Generator(np.random.PCG64([seed, layer, crc32(name.encode())]))
        mean, spread = _distribution(name, shape, spec)
        values = stream.standard_normal(shape, dtype=np.float32)
        values *= np.float32(spread)
        if mean:
            values += np.float32(mean)
        weights[name] = torch.from_numpy(values).to(getattr(torch, spec.dtype))
    return weights


def _distribution(name: str, shape: tuple[int, ...], spec: AttentionSpec) -> tuple[float, float]:
    """Mean and standard deviation of a tensor."""
    part, _, kind = name.partition(".")
    if part == "sinks":
        return 0.0, 1.0
    if kind == "bias":
        return 0.0, 0.5
    if part.endswith("_norm"):
        norm = getattr(spec, part, None)
        return 1.0 - (norm.offset if norm else 0.0), 0.25
    return 0.0, 1 / math.sqrt(shape[1])

"""inv_freq as the reference takes it: the variant's own, in float32."""

from collections.abc import Callable
from functools import cache

import numpy as np
import torch

from rope_export.arrays import to_numpy
from rope_export.spec import AttentionSpec


def frequencies(spec: AttentionSpec) -> Callable[[int], np.ndarray]:
    """inv_freq of a call by its length; the tests prove the variants against transformers."""
    rope = spec.rope

    @cache
    def at(length: int | None) -> np.ndarray:
        assert rope is not None
        return to_numpy(rope.inv_freq(None if length is None else torch.tensor(length)))

    return lambda length: at(length if rope is not None and rope.depends_on_length else None)

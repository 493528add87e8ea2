"""inv_freq as the reference takes it: the variant's own, in float32."""

from collections.abc import Callable

import numpy as np
import torch

from rope_export.arrays import to_numpy
from rope_export.spec import AttentionSpec


def frequencies(spec: AttentionSpec) -> Callable[[int], np.ndarray]:
    """inv_freq of a call by its length; the tests prove the variants against transformers."""
    rope = spec.rope

    def at(length: int) -> np.ndarray:
        assert rope is not None
        positions = torch.tensor(length) if rope.depends_on_length else None
        return to_numpy(rope.inv_freq(positions))

    return at

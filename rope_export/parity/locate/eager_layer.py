"""The tensors on the way through the eager layer."""

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from rope_export.arrays import to_numpy, to_torch
from rope_export.attention.layer import RotaryAttention
from rope_export.attention.operators import EagerOperators

Tapped = Mapping[str, tuple[np.ndarray, str]]
"""By the tensor's name its numbers and their axes, as of `Operators.tap`."""


class _Recording(EagerOperators):
    """Eager's operators, which keep what they are shown."""

    def __init__(self) -> None:
        self.seen: dict[str, tuple[np.ndarray, str]] = {}

    def tap(self, name: str, x: Tensor, axes: str) -> Tensor:
        self.seen[name] = to_numpy(x.detach()), axes
        return x


def eager_taps(layer: RotaryAttention, inputs: Mapping[str, np.ndarray]) -> Tapped:
    """Every tensor on the way in one call of the eager layer."""
    recording = _Recording()
    before, layer.operators = layer.operators, recording
    try:
        layer(**{name: to_torch(value) for name, value in inputs.items()})
    finally:
        layer.operators = before
    return recording.seen

"""Linear position scaling."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from rope_export.rope.base import RopeSpec
from rope_export.rope.default import plain_inv_freq
from rope_export.rope.parameters import at_least_one


@dataclass(frozen=True, kw_only=True)
class LinearRope(RopeSpec):
    """Positions squeezed by `factor`, so that a longer context fits the trained angles.

    The frequencies are divided, not the positions: the two differ in the last bits of the float32
    angle unless the factor is a power of two, and trained models divide the frequencies.
    Source: Position Interpolation, arXiv:2306.15595; transformers' rope_type "linear".
    """

    rope_type = "linear"
    hf_keys: ClassVar[dict[str, str]] = {"factor": "factor"}

    factor: float

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one("linear", self.factor)

    def inv_freq(self, length: Tensor | None = None) -> Tensor:
        return plain_inv_freq(self.rotary_dim, self.theta) / self.factor

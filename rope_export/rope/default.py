"""Plain RoPE."""

from dataclasses import dataclass

import torch
from torch import Tensor

from rope_export.rope.base import RopeSpec


def powers(rotary_dim: int, theta: float) -> Tensor:
    """theta ** (2i / rotary_dim) for the pairs i = 0 … rotary_dim / 2 - 1, on the CPU.

    rotary_dim is that of one head, not of the embedding. The order of operations is that of the
    trained models: a float32 power of torch. exp(x ln theta), or numpy's power, differ in the last
    bits.
    """
    with torch.device("cpu"):
        exponent = torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim
        return theta**exponent


def plain_inv_freq(rotary_dim: int, theta: float) -> Tensor:
    """theta ** (-2i / rotary_dim) for every pair.

    Returns: float32[rotary_dim / 2] on the CPU.
    Source: RoFormer, arXiv:2104.09864, section 3.2.2; LlamaRotaryEmbedding in transformers.
    """
    return 1.0 / powers(rotary_dim, theta)


@dataclass(frozen=True, kw_only=True)
class DefaultRope(RopeSpec):
    """The frequencies of RoFormer, unscaled."""

    rope_type = "default"

    def inv_freq(self, length: Tensor | None = None) -> Tensor:
        return plain_inv_freq(self.rotary_dim, self.theta)

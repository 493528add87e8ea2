"""Linear layers as a lowering has them: weights ready for MatMul, or quantized to 8 or 4 bits."""

from typing import Any

import torch
from torch import Tensor, nn

from rope_export.lowerings.base import reshaped
from rope_export.quantization import Packed, Quantization

SCALES = "weight_scales"
"""What follows a projection's name in that of its scales."""
ZERO_POINTS = "weight_zero_points"
"""What follows a projection's name in that of its zero points."""
OFFSETS = "weight_offsets"
"""What follows a projection's name in that of its blocks' offsets."""


def packed_name(quantization: Quantization) -> str:
    """What follows a projection's name in that of its packed weight."""
    return f"weight_Q{quantization.bits}"


class Projection(nn.Module):
    """A linear layer whose weight is stored (in, out), ready for MatMul: no Transpose in the file.

    `weight` keeps the name it has in the checkpoint.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(linear.weight.t().contiguous(), requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.weight
        return y if self.bias is None else y + self.bias


class QuantizedProjection(nn.Module):
    """A linear layer whose weight is quantized to 8 or 4 bits: com.microsoft MatMulNBits."""

    def __init__(self, linear: nn.Linear, packed: Packed, quantization: Quantization) -> None:
        super().__init__()
        self.quantization, self.outputs = quantization, linear.out_features
        self.block = packed.block_size(quantization.bits)
        self.attributes: dict[str, Any] = {"K": linear.in_features, "N": self.outputs}
        self.attributes |= vars(quantization) | {"block_size": self.block}
        self.register_buffer(packed_name(quantization), torch.from_numpy(packed.packed))
        self.register_buffer(SCALES, torch.from_numpy(packed.scales))
        self.has_zeros, self.has_offsets = packed.zeros is not None, packed.offsets is not None
        if packed.zeros is not None:
            self.register_buffer(ZERO_POINTS, torch.from_numpy(packed.zeros))
        if packed.offsets is not None:
            self.register_buffer(OFFSETS, torch.from_numpy(packed.offsets))
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        zeros = (ZERO_POINTS,) if self.has_zeros else ()
        names = (packed_name(self.quantization), SCALES, *zeros)
        y = torch.onnx.ops.symbolic(
            "com.microsoft::MatMulNBits",
            (x, *(self.get_buffer(name) for name in names)),
            self.attributes,
            dtype=x.dtype,
            shape=(*x.shape[:-1], self.outputs),
            version=1,
        )
        if self.has_offsets:
            y = y + self._sums(x) @ self.get_buffer(OFFSETS)
        return y if self.bias is None else y + self.bias

    def _sums(self, x: Tensor) -> Tensor:
        """The sum of each block's inputs, (B, S, blocks)."""
        blocks = x.shape[-1] // self.block
        shape = (*x.shape[:2], blocks, self.block)
        return reshaped(x, [0, 0, blocks, self.block], shape).sum(dim=-1)

"""Quantized weights to trace: shapes of packed weights and scales, which have no contents yet."""

from typing import Any

import torch
from torch import Tensor, nn

from rope_export.lowerings import SCALES, packed_name
from rope_export.lowerings.base import reshaped
from rope_export.quantization import Quantization

MATMUL = "com.microsoft::MatMulNBits"
GATHER = "com.microsoft::GatherBlockQuantized"


class QuantizedProjection(nn.Module):
    """A linear layer whose weight is packed: (out, blocks, bytes of a block), and its scales
    (out, blocks); com.microsoft MatMulNBits.

    Source: ONNX Runtime, contrib operators.
    """

    def __init__(self, linear: nn.Linear, quantization: Quantization) -> None:
        super().__init__()
        self.quantization, self.bias = quantization, linear.bias
        self.inputs, self.outputs = linear.in_features, linear.out_features
        self.packed_name = packed_name(quantization)
        blocks = -(-self.inputs // quantization.block_size)
        size = quantization.block_size * quantization.bits // 8
        packed = torch.empty((self.outputs, blocks, size), dtype=torch.uint8)
        self.register_buffer(self.packed_name, packed)
        scales = torch.empty((self.outputs, blocks), dtype=linear.weight.dtype)
        self.register_buffer(SCALES, scales)

    @property
    def tensors(self) -> tuple[Tensor, Tensor]:
        return self.get_buffer(self.packed_name), self.get_buffer(SCALES)

    def forward(self, x: Tensor) -> Tensor:
        attributes: dict[str, Any] = {
            "K": self.inputs,
            "N": self.outputs,
            **vars(self.quantization),
        }
        shape = (*x.shape[:-1], self.outputs)
        operands = (x, *self.tensors)
        y = torch.onnx.ops.symbolic(MATMUL, operands, attributes, dtype=x.dtype, shape=shape)
        return y if self.bias is None else y + self.bias


def fits(embedding: nn.Module, head: QuantizedProjection) -> bool:
    """Whether an embedding can take its rows from a quantized head: they are whole blocks, and it
    does nothing but to look them up."""
    plain = type(embedding) is nn.Embedding
    return plain and head.inputs % head.quantization.block_size == 0


class QuantizedEmbedding(nn.Module):
    """An embedding whose rows are those of a quantized head's weight; GatherBlockQuantized."""

    def __init__(self, head: QuantizedProjection) -> None:
        super().__init__()
        self.head = head

    def forward(self, input_ids: Tensor) -> Tensor:
        packed, scales = self.head.tensors
        rows = (packed.shape[0], packed.shape[1] * packed.shape[2])
        attributes: dict[str, Any] = {
            "bits": self.head.quantization.bits,
            "block_size": self.head.quantization.block_size,
            "gather_axis": 0,
            "quantize_axis": 1,
        }
        return torch.onnx.ops.symbolic(
            GATHER,
            (reshaped(packed, list(rows), rows), input_ids, scales),
            attributes,
            dtype=scales.dtype,
            shape=(*input_ids.shape, self.head.inputs),
        )

"""FP8: 8-bit floating weights with a scale for the tensor, an output, or a block of it.

Source: transformers, integrations/finegrained_fp8.py (Fp8Dequantize) and integrations/
fbgemm_fp8.py; DeepSeek-V3, inference/kernel.py, weight_dequant.
"""

from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor

from rope_export.checkpoints.integers import Integers
from rope_export.checkpoints.quantized.base import Config, Format, Read, excluded

FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)


def scaled(weight: Tensor, scale: Tensor, block: tuple[int, int]) -> Tensor | None:
    """weight (out, in) times the scale of its block, in float32; None if the scales do not cover
    the weight in blocks of that shape. block: outputs and inputs, those at the end may be fewer."""
    rows, columns = (-(-n // size) for n, size in zip(weight.shape, block, strict=True))
    if tuple(scale.shape) != (rows, columns):
        return None
    wide = scale.float().repeat_interleave(block[0], 0)[: weight.shape[0]]
    wide = wide.repeat_interleave(block[1], 1)[:, : weight.shape[1]]
    return weight.float() * wide


class FineGrainedFp8(Format):
    methods: ClassVar[tuple[str, ...]] = ("fp8",)
    tensors: ClassVar[tuple[str, ...]] = ("weight_scale_inv",)
    beside: ClassVar[tuple[str, ...]] = ("activation_scale",)

    def __init__(self, method: str, config: Config) -> None:
        super().__init__(method, config)
        block = config.get("weight_block_size")
        if block is not None and (
            not isinstance(block, list | tuple)
            or len(block) != 2
            or not all(isinstance(size, int) and size > 0 for size in block)
        ):
            raise self.refused("weight_block_size", "two sizes, or null for one scale")
        if config.get("fmt", "e4m3") not in ("e4m3", "float8_e4m3fn"):
            raise self.refused("fmt", "'e4m3'")

    def quantizes(self, module: str) -> bool:
        return not excluded(module, self.config.get("modules_to_not_convert"))

    def stored(self, module: str, read: Read, names: Iterable[str]) -> Integers | Tensor:
        weight, scale = read(f"{module}.weight"), read(f"{module}.weight_scale_inv")
        if weight.dtype not in FLOAT8:
            raise self.damaged(module, f"the weight is {weight.dtype} and has a scale")
        if scale.dtype == torch.uint8 and self.config.get("scale_fmt") == "ue8m0":
            scale = scale.view(torch.float8_e8m0fnu)
        if not scale.is_floating_point():
            raise self.damaged(module, f"the scale is {scale.dtype}")
        block = self.config.get("weight_block_size")
        if block is None:
            if scale.numel() != 1:
                raise self.damaged(module, "weight_block_size is null, but there are many scales")
            return weight.float() * scale.float().reshape(())
        value = scaled(weight, scale, (block[0], block[1]))
        if value is None:
            raise self.damaged(module, f"scales {tuple(scale.shape)} are not one for {block}")
        return value


class FbgemmFp8(Format):
    methods: ClassVar[tuple[str, ...]] = ("fbgemm_fp8",)
    tensors: ClassVar[tuple[str, ...]] = ("weight_scale",)
    beside: ClassVar[tuple[str, ...]] = ("input_scale_ub",)

    def quantizes(self, module: str) -> bool:
        return not excluded(module, self.config.get("modules_to_not_convert"))

    def stored(self, module: str, read: Read, names: Iterable[str]) -> Integers | Tensor:
        weight, scale = read(f"{module}.weight"), read(f"{module}.weight_scale")
        value = None
        if weight.dtype in FLOAT8:
            value = scaled(weight, scale.reshape(-1, 1), (1, weight.shape[1]))
        if value is None:
            raise self.damaged(module, "it is not float8 with a scale for each output")
        return value

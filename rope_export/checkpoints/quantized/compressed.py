"""compressed-tensors: what llm-compressor writes, as packed integers, int8 or float8.

pack-quantized: weight_packed int32 (out, in * bits / 32), weight_scale (out, groups), weight_shape,
and unless symmetric weight_zero_point int32 (out * bits / 32, groups); every stored number has half
the range added. int-quantized, float-quantized and naive-quantized: weight int8 or float8 (out, in)
with weight_scale for the tensor, an output, a group of inputs or a block.
Source: vllm-project/compressed-tensors, compressors/pack_quantized and naive_quantized, and
quantization/lifecycle/forward.py, dequantize.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from rope_export.checkpoints.integers import Integers, evenly, unpacked
from rope_export.checkpoints.quantized.base import WAY_OUT, Config, Format, Read
from rope_export.checkpoints.quantized.fp8 import FLOAT8, scaled
from rope_export.errors import CheckpointError

PACKED = "pack-quantized"
NAIVE = ("int-quantized", "float-quantized", "naive-quantized")
PACKED_BITS = (4, 8)
"""Bits that are read; integers of other sizes lie otherwise in older files than in newer ones."""


class CompressedTensors(Format):
    methods: ClassVar[tuple[str, ...]] = ("compressed-tensors",)
    tensors: ClassVar[tuple[str, ...]] = (
        "weight_scale",
        "weight_packed",
        "weight_shape",
        "weight_zero_point",
        "weight_g_idx",
    )
    beside: ClassVar[tuple[str, ...]] = (
        "input_scale",
        "input_zero_point",
        "output_scale",
        "output_zero_point",
    )

    def __init__(self, method: str, config: Config) -> None:
        super().__init__(method, config)
        if config.get("quantization_status", "compressed") != "compressed":
            raise self.refused("quantization_status", "'compressed'")
        if config.get("kv_cache_scheme"):
            raise self.refused("kv_cache_scheme", "null, a cache that is not quantized")
        if config.get("transform_config"):
            raise self.refused("transform_config", "none")
        sparsity = config.get("sparsity_config") or {}
        if sparsity.get("format", "dense") != "dense":
            raise self.refused("sparsity_config", "format 'dense'")
        groups = config.get("config_groups") or {}
        if not all(isinstance(group, Mapping) for group in groups.values()):
            raise self.refused("config_groups", "groups that are written out")
        self.groups: list[Mapping[str, Any]] = list(groups.values())

    def quantizes(self, module: str) -> bool:
        return self._group(module) is not None

    def stored(self, module: str, read: Read, names: Iterable[str]) -> Integers | Tensor:
        group = self._group(module)
        assert group is not None
        args, kind = group["weights"], group.get("format") or self.config.get("format")
        bits = args.get("num_bits", 8)
        tensors = {
            name: read(f"{module}.{name}")
            for name in ("weight", *self.tensors)
            if f"{module}.{name}" in names
        }
        if kind == PACKED and args.get("type", "int") == "int" and bits in PACKED_BITS:
            values, zeros = _unpacked(tensors, bits)
        elif kind in NAIVE and "weight" in tensors:
            if tensors["weight"].dtype in FLOAT8:
                return self._floating(module, tensors, args)
            values, zeros = _plain(tensors, bits)
        else:
            raise CheckpointError(
                f"{module!r}: compressed-tensors format={kind!r} with {bits} bits of type "
                f"{args.get('type', 'int')!r} is not read; supported: {PACKED} in 4 or 8 bits, "
                f"{', '.join(NAIVE)}. {WAY_OUT}"
            )
        return self._grouped(module, tensors, args, bits, values, zeros)

    def _grouped(
        self,
        module: str,
        tensors: Mapping[str, Tensor],
        args: Mapping[str, Any],
        bits: int,
        values: Tensor,
        zeros: Tensor | None,
    ) -> Integers:
        """Integers with the scales of their tensor, outputs or groups."""
        outputs, inputs = values.shape
        scales = tensors["weight_scale"]
        strategy = args.get("strategy") or ("group" if args.get("group_size") else "tensor")
        columns = -(-inputs // args["group_size"]) if strategy == "group" else 1
        if strategy not in ("tensor", "channel", "group"):
            raise CheckpointError(
                f"{module!r}: compressed-tensors strategy={strategy!r} of integers is not read; "
                f"supported: tensor, channel, group. {WAY_OUT}"
            )
        if scales.numel() not in ((1,) if strategy == "tensor" else (outputs * columns,)):
            raise self.damaged(module, f"{scales.numel()} scales with strategy={strategy!r}")
        shape = (outputs, columns)
        half = 2 ** (bits - 1)
        zeros = torch.zeros(shape) if zeros is None else zeros.reshape(-1, columns)
        order = tensors.get("weight_g_idx")
        return Integers(
            bits=bits,
            values=values,
            scales=scales.reshape(-1, columns).expand(shape).contiguous(),
            zeros=(zeros.expand(shape).int() + half).contiguous(),
            groups=evenly(inputs, columns, args.get("group_size") or -1)
            if order is None or int(order.min()) < 0
            else order.long(),
        )

    def _floating(
        self, module: str, tensors: Mapping[str, Tensor], args: Mapping[str, Any]
    ) -> Tensor:
        """float8 weights with their scales."""
        weight, scale = tensors["weight"], tensors["weight_scale"]
        outputs, inputs = weight.shape
        strategy = args.get("strategy") or "tensor"
        blocks = {
            "tensor": (outputs, inputs),
            "channel": (1, inputs),
            "group": (1, args.get("group_size") or inputs),
            "block": tuple(args.get("block_structure") or ()),
        }
        zero = tensors.get("weight_zero_point")
        value = None
        if zero is None or not zero.float().any():
            block = blocks.get(strategy, ())
            scale = scale.reshape(1, 1) if strategy == "tensor" and scale.numel() == 1 else scale
            scale = scale.reshape(-1, 1) if strategy == "channel" else scale
            value = scaled(weight, scale, (block[0], block[1])) if len(block) == 2 else None
        if value is None:
            raise self.damaged(module, f"float8 with strategy={strategy!r} and other scales")
        return value

    def _group(self, module: str) -> Mapping[str, Any] | None:
        """The scheme of a linear layer, or nothing if its weight is left alone."""
        if any(_meant(module, name) for name in self.config.get("ignore") or ()):
            return None
        for target_kind in ("name", "class"):  # a name counts more than "Linear"
            for group in self.groups:
                if any(
                    _meant(module, target, target_kind) for target in group.get("targets") or ()
                ):
                    return group if group.get("weights") else None
        return None


def _meant(module: str, target: str, target_kind: str | None = None) -> bool:
    """Whether a target means the linear layer: its name, a regular expression, or its class."""
    if target == "Linear":
        return target_kind != "name"
    if target_kind == "class":
        return False
    if target.startswith("re:"):
        return re.match(target.removeprefix("re:"), module) is not None
    return target == module


def _unpacked(tensors: Mapping[str, Tensor], bits: int) -> tuple[Tensor, Tensor | None]:
    """Packed integers with half the range added, and zero points without."""
    outputs, inputs = (int(size) for size in tensors["weight_shape"])
    values = unpacked(tensors["weight_packed"], bits, inputs)
    zeros = tensors.get("weight_zero_point")
    if zeros is not None:
        stored = unpacked(zeros.t().contiguous(), bits, outputs).t()
        zeros = stored.int() - 2 ** (bits - 1)
    return values, zeros


def _plain(tensors: Mapping[str, Tensor], bits: int) -> tuple[Tensor, Tensor | None]:
    """int8 integers with half the range added, and zero points without."""
    zeros = tensors.get("weight_zero_point")
    values = (tensors["weight"].int() + 2 ** (bits - 1)).to(torch.uint8)
    return values, None if zeros is None else zeros.int()

"""Quantized checkpoints written by the formats' published definitions, and what they stand for.

Nothing here is shared with the reader. Integers, scales and zero points are drawn first; the
expected value is computed from them, one element after the other as the definition has it, and
they are packed by loops over bits as the writers of the formats have them.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from tests.conftest import TINY

SHAPES = {"q_proj": (64, 64), "k_proj": (32, 64), "v_proj": (32, 64), "o_proj": (64, 64)}
PREFIX = "model.layers.0.self_attn."


@dataclass
class Drawn:
    """A layer's weight (out, in): its integers, scales (out, groups), zero points, groups (in)."""

    integers: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray
    groups: np.ndarray

    @property
    def value(self) -> torch.Tensor:
        """(integer - zero) * scale, float32."""
        scale = self.scales.astype(np.float32)[:, self.groups]
        return torch.from_numpy(
            (self.integers - self.zeros[:, self.groups]).astype(np.float32) * scale
        )


def drawn(
    name: str,
    bits: int,
    size: int = 32,
    symmetric: bool = False,
    ordered: bool = True,
    least: int = 0,
) -> Drawn:
    """Of one projection. size: inputs that share a scale. ordered: whether those lie together.
    least: zero point."""
    outputs, inputs = SHAPES[name]
    stream = np.random.default_rng([bits, size, *map(ord, name)])
    groups = np.arange(inputs) // size
    if not ordered:
        groups = stream.permutation(groups)
    shape = (outputs, inputs // size)
    half = 2 ** (bits - 1)
    # As in real weights, 0 lies about the middle of the range; one of each kind lies at an end.
    zeros = np.clip(np.rint(stream.normal(half, half / 6, shape)), least, 2 * half - 1).astype(int)
    zeros[0, 0], zeros[1, 0] = least, 2 * half - 1
    return Drawn(
        integers=stream.integers(0, 2**bits, (outputs, inputs)),
        scales=stream.uniform(0.004, 0.02, shape).astype(np.float16),
        zeros=np.full(shape, half) if symmetric else zeros,
        groups=groups,
    )


@dataclass
class Checkpoint:
    """tensors: by full name. expected: of each projection, float32. quantization: of the config."""

    quantization: dict[str, Any] | None
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    expected: dict[str, torch.Tensor] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=lambda: dict(TINY))

    def plain(self, name: str, dtype: torch.dtype = torch.float16) -> None:
        """A projection that is not quantized."""
        weight = torch.randn(SHAPES[name], generator=torch.Generator().manual_seed(7)).to(dtype)
        self.expected[name] = weight.float()
        self.tensors[f"{PREFIX}{name}.weight"] = weight

    def save(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        more = {} if self.quantization is None else {"quantization_config": self.quantization}
        (folder / "config.json").write_text(json.dumps(self.config | more))
        tensors = {name: x.contiguous() for name, x in self.tensors.items()}
        save_file(tensors, folder / "model.safetensors")
        return folder


def in_bits(values: np.ndarray, bits: int) -> torch.Tensor:
    """Rows of integers as one string of bits, the lowest of the first integer first, in int32."""
    rows = []
    for row in values:
        text = sum(int(x) << (bits * at) for at, x in enumerate(row))
        words = -(-len(row) * bits // 32)
        rows.append([(text >> (32 * at)) & 0xFFFFFFFF for at in range(words)])
    return torch.from_numpy(np.array(rows, np.uint32).view(np.int32))


def gptq(
    bits: int = 4,
    *,
    version: int = 1,
    act_order: bool = False,
    symmetric: bool = False,
    size: int = 32,
    plain: tuple[str, ...] = (),
    **more: Any,
) -> Checkpoint:
    """Source: AutoGPTQ, qlinear_cuda.py, QuantLinear.pack: qweight packs intweight (in, out) down
    the inputs, qzeros packs zeros - 1 along the outputs; GPTQModel's gptq_v2 packs zeros."""
    quantization = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": size,
        "desc_act": act_order,
        "sym": symmetric,
        "checkpoint_format": "gptq" if version == 1 else "gptq_v2",
    }
    made = Checkpoint(quantization | more)
    for name in SHAPES:
        if name in plain:
            made.plain(name)
            continue
        less = 1 if version == 1 else 0  # which leaves no place for 0
        x = drawn(name, bits, size, symmetric, not act_order, least=less)
        stored = x.zeros.T - less
        made.expected[name] = x.value
        made.tensors |= {
            f"{PREFIX}{name}.qweight": in_bits(x.integers, bits).T,
            f"{PREFIX}{name}.qzeros": in_bits(stored, bits),
            f"{PREFIX}{name}.scales": torch.from_numpy(x.scales.T.copy()),
            f"{PREFIX}{name}.g_idx": torch.from_numpy(x.groups.astype(np.int32)),
        }
    return made


def awq(size: int = 32, plain: tuple[str, ...] = (), **more: Any) -> Checkpoint:
    """Source: AutoAWQ, awq/modules/linear/gemm.py, WQLinear_GEMM.from_linear: in the words of
    qweight (in, out / 8) and qzeros (groups, out / 8), place i holds output order_map[i]."""
    made = Checkpoint(
        {"quant_method": "awq", "bits": 4, "group_size": size, "version": "gemm"}
        | {"zero_point": True}
        | more
    )

    def packed(values: np.ndarray) -> torch.Tensor:
        order_map = [0, 2, 4, 6, 1, 3, 5, 7]
        words = np.zeros((values.shape[0], values.shape[1] // 8), np.uint32)
        for column in range(words.shape[1]):
            for i in range(8):
                part = values[:, column * 8 + order_map[i]].astype(np.uint32)
                words[:, column] |= part << np.uint32(i * 4)
        return torch.from_numpy(words.view(np.int32))

    for name in SHAPES:
        if name in plain:
            made.plain(name)
            continue
        x = drawn(name, 4, size)
        made.expected[name] = x.value
        made.tensors |= {
            f"{PREFIX}{name}.qweight": packed(x.integers.T),
            f"{PREFIX}{name}.qzeros": packed(x.zeros.T),
            f"{PREFIX}{name}.scales": torch.from_numpy(x.scales.T.copy()),
        }
    return made


def fp8(block: tuple[int, int] | None = (24, 40), dtype: torch.dtype = torch.float32) -> Checkpoint:
    """Source: DeepSeek-V3, inference/kernel.py, weight_dequant: a weight is multiplied by the
    scale of its block, blocks at the ends being smaller."""
    size = None if block is None else list(block)
    made = Checkpoint({"quant_method": "fp8", "weight_block_size": size, "fmt": "e4m3"})
    for at, (name, shape) in enumerate(SHAPES.items()):
        stream = torch.Generator().manual_seed(at)
        weight = torch.randn(shape, generator=stream).to(torch.float8_e4m3fn)
        rows, columns = block or shape
        grid = (-(-shape[0] // rows), -(-shape[1] // columns))
        scale = (torch.rand(grid, generator=stream) / 8 + 0.01).to(dtype)
        value = torch.empty(shape)
        for i in range(shape[0]):
            for j in range(shape[1]):
                value[i, j] = weight[i, j].float() * scale[i // rows, j // columns].float()
        made.expected[name] = value
        made.tensors[f"{PREFIX}{name}.weight"] = weight
        stored = scale.reshape(()) if block is None else scale
        made.tensors[f"{PREFIX}{name}.weight_scale_inv"] = stored
    return made


def compressed(arguments: dict[str, Any], kind: str, activations: Any = None) -> Checkpoint:
    """By compressed-tensors' own compressor, and what its decompressor gives."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    args = QuantizationArgs(**arguments)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    compressor: Any = BaseCompressor.get_value_from_registry(kind)
    group = {"targets": ["Linear"], "weights": arguments, "input_activations": activations}
    made = Checkpoint(
        {"quant_method": "compressed-tensors", "format": kind, "ignore": ["lm_head"]}
        | {"quantization_status": "compressed", "config_groups": {"group_0": group}}
    )
    for at, (name, shape) in enumerate(SHAPES.items()):
        stream = torch.Generator().manual_seed(at)
        state = {"weight": torch.randn(shape, generator=stream)}
        grid = _grid(shape, arguments)
        spread = 3 / 2 ** (arguments["num_bits"] - 1) if args.type == "int" else 0.02
        state["weight_scale"] = (torch.rand(grid, generator=stream) + 0.5) * spread
        half = 2 ** (arguments["num_bits"] - 1)
        zeros = torch.randint(-half, half, grid, generator=stream, dtype=torch.int8)
        if not args.symmetric:
            state["weight_zero_point"] = zeros
        stored = compressor.compress(state, scheme)
        made.expected[name] = compressor.decompress(stored, scheme)["weight"]
        for tensor, value in stored.items():
            made.tensors[f"{PREFIX}{name}.{tensor}"] = value
    return made


def _grid(shape: tuple[int, int], arguments: dict[str, Any]) -> tuple[int, ...]:
    """How many scales a weight has."""
    strategy = arguments["strategy"]
    if strategy == "tensor":
        return (1,)
    if strategy == "channel":
        return (shape[0], 1)
    rows, columns = arguments.get("block_structure") or (1, arguments["group_size"])
    return (-(-shape[0] // rows), -(-shape[1] // columns))

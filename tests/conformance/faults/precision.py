"""Faults of precision in layers of float32, each with the layer that it is planted in."""

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from rope_export import AttentionSpec
from tests.conformance.faults.planting import (
    Edit,
    Fault,
    Weights,
    behind,
    cast_through,
    chained,
)

INSIDE = "its operator of attention does not give that tensor"
TEN_BITS = 2.0**11


def rounded(tensor: str, to: ir.DataType) -> Edit:
    return behind(tensor, *cast_through(to, ir.DataType.FLOAT))


def of_weight(name: str, by: Callable[[Tensor], Tensor]) -> Any:
    def change(spec: AttentionSpec, weights: Weights) -> Weights:
        return weights | {name: by(weights[name])}

    return change


def bfloat16(x: Tensor) -> Tensor:
    return x.bfloat16().float()


def ten_bits(x: Tensor) -> Tensor:
    """As TF32 has operands: ten bits after the leading one."""
    fraction, exponent = torch.frexp(x)
    return torch.ldexp(torch.round(fraction * TEN_BITS) / TEN_BITS, exponent)


def int8(x: Tensor) -> Tensor:
    """With one scale for each output."""
    step = x.abs().amax(dim=1, keepdim=True) / 127
    return torch.round(x / step) * step


def precision(name: str, first: tuple[str, ...], **how: Any) -> Fault:
    return Fault(name=name, first=first, kind="precision", dtypes=("float32",), **how)


HALF, BRAIN = ir.DataType.FLOAT16, ir.DataType.BFLOAT16

FAULTS: list[tuple[str, Fault]] = [
    (
        "plain",
        precision(
            "hidden states in bfloat16",
            ("q_proj",),
            edit=chained("hidden_states", *cast_through(BRAIN, ir.DataType.FLOAT)),
        ),
    ),
    (
        "plain",
        precision(
            "positions in bfloat16",
            ("cos",),
            edit=chained("position_ids", *cast_through(BRAIN, ir.DataType.INT64)),
        ),
    ),
    (
        "plain",
        precision(
            "keys' weights in bfloat16",
            ("k_proj",),
            weights=of_weight("k_proj.weight", bfloat16),
        ),
    ),
    (
        "plain",
        precision(
            "values' weights in ten bits", ("v_proj",), weights=of_weight("v_proj.weight", ten_bits)
        ),
    ),
    (
        "plain",
        precision("output weights in int8", ("o_proj",), weights=of_weight("o_proj.weight", int8)),
    ),
    ("plain", precision("queries in float16", ("q_rotated",), edit=rounded("q_rotated", HALF))),
    ("plain", precision("cos in float16", ("cos",), edit=rounded("cos", HALF))),
    ("plain", precision("context in bfloat16", ("context",), edit=rounded("context", BRAIN))),
    (
        "softcap 50",
        precision(
            "scores in float16",
            ("scores",),
            edit=rounded("scores", HALF),
            lowerings=("portable", "tensorrt"),
            why=INSIDE,
        ),
    ),
    (
        "softcap 50",
        precision(
            "probabilities in bfloat16",
            ("probabilities",),
            edit=rounded("probabilities", BRAIN),
            lowerings=("portable", "tensorrt"),
            why=INSIDE,
        ),
    ),
    (
        "q and k norm",
        precision("normed queries in float16", ("q_norm",), edit=rounded("q", HALF)),
    ),
    ("gate", precision("gate in bfloat16", ("gate_proj",), edit=rounded("gate", BRAIN))),
]

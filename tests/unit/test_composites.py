"""An export that spares torch work makes what torch makes: composite operators that are replaced in
place, dtypes of the trace, sizes without a cache."""

import dataclasses
from contextlib import nullcontext
from typing import Any

import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from rope_export import AttentionSpec, RotaryAttention
from rope_export.checkpoints.drawn import drawn_weights
from rope_export.exporter import composites, translation, type_promotion
from rope_export.exporter.translation import traced, translate
from rope_export.interface import TensorType, attention_interface
from rope_export.lowerings import lowered, lowerings
from tests.conftest import TINY

WINDOW = {"model_type": "gemma3_text", "sliding_window": 4, "query_pre_attn_scalar": 16}
NORMED = {"model_type": "qwen3"}
PAIRS = {"model_type": "cohere"}
LAYERS = [
    ("portable", "growing", True, "float16", WINDOW),
    ("tensorrt", "none", False, "float32", PAIRS),
    *(
        pytest.param(lowering, cache, padding, dtype, config, marks=pytest.mark.long)
        for lowering in ("portable", "standard", "ort", "tensorrt")
        for cache in ("none", "growing", "fixed")
        for padding, dtype, config in (
            (True, "float32", WINDOW),
            (False, "float16", NORMED),
            (True, "float16", PAIRS),
        )
        if (lowering, cache) != ("portable", "fixed")
    ),
]


class Outline:
    """Numbers for the values of graphs: those that are computed alike have the same."""

    def __init__(self) -> None:
        self.numbers: dict[Any, int] = {}

    def __call__(self, graph: ir.Graph) -> tuple[list[int], list[int]]:
        """Of every value that is computed, and of the outputs in their order."""
        of: dict[ir.Value | None, int] = {None: -1}
        for value in graph.inputs:
            of[value] = self.number(value.name, value.dtype, str(value.shape))
        for value in graph.initializers.values():
            array = value.const_value.numpy()
            of[value] = self.number(str(array.dtype), array.shape, array.tobytes())
        computed = []
        for node in graph:
            attributes = tuple(sorted((name, str(a)) for name, a in node.attributes.items()))
            operands = tuple(of[value] for value in node.inputs)
            for at, value in enumerate(node.outputs):
                kind = (node.domain, node.op_type, attributes, at)
                of[value] = self.number(*kind, operands, value.dtype, str(value.shape))
                computed.append(of[value])
        return sorted(computed), [of[value] for value in graph.outputs]

    def number(self, *facts: Any) -> int:
        return self.numbers.setdefault(facts, len(self.numbers))


@pytest.mark.parametrize(("lowering", "cache", "padding", "dtype", "config"), LAYERS)
def test_the_graph_is_the_one_that_torch_makes(
    lowering, cache, padding, dtype, config, monkeypatch
) -> None:
    spec = dataclasses.replace(AttentionSpec.from_hf({**TINY, **config}), dtype=dtype)
    interface = attention_interface(spec, cache=cache, padding=padding)
    target, outline, done = lowerings()[lowering], Outline(), []
    decompose = composites.decompose

    def graph() -> tuple[list[int], list[int]]:
        layer = RotaryAttention.from_weights(spec, drawn_weights(spec, 0))
        module = lowered(layer, target, cache)
        return outline(translate(module, interface, target.caches[cache]).graph)

    monkeypatch.setattr(composites, "decompose", lambda *a: done.append(decompose(*a)) or done[-1])
    ours = graph()
    assert done == [True]
    monkeypatch.setattr(composites, "decompose", lambda *_: False)
    monkeypatch.setattr(type_promotion, "from_the_trace", nullcontext)
    monkeypatch.setattr(translation, "_no_cache", nullcontext)
    assert graph() == ours


class Routed(nn.Module):
    """Writes to tensors of its own, as routers of experts do."""

    def forward(self, *tensors: Tensor) -> Tensor:
        (x,) = tensors
        weights, chosen = torch.topk(x.softmax(-1), 2, dim=-1)
        weights /= weights.sum(-1, keepdim=True)
        mask = torch.zeros_like(x).scatter_(1, chosen, 1)
        total = x * mask
        total += weights.sum(-1, keepdim=True).to(x.device, x.dtype)
        total.scatter_(1, chosen, weights)
        return total.mul_(x)


class Viewed(nn.Module):
    """Writes to what is looked at in another way afterwards."""

    def forward(self, *tensors: Tensor) -> Tensor:
        (x,) = tensors
        y = x * 2
        first = y[:, :4]
        y += x
        return first


@pytest.mark.parametrize(("module", "replaced"), [(Routed, True), (Viewed, False)])
def test_what_is_written_in_place_is_what_torch_makes_of_it(module, replaced, monkeypatch) -> None:
    inputs = [TensorType(name="x", dtype="float32", shape=("batch", 8))]
    outline, done = Outline(), []
    decompose = composites.decompose
    monkeypatch.setattr(composites, "decompose", lambda *a: done.append(decompose(*a)) or done[-1])
    ours = outline(traced(module(), inputs, ["y"], 18).graph)
    assert done == [replaced]
    monkeypatch.setattr(composites, "decompose", lambda *_: False)
    assert outline(traced(module(), inputs, ["y"], 18).graph) == ours


class Mixed(nn.Module):
    def forward(self, *tensors: Tensor) -> Tensor:
        return tensors[0] * torch.arange(8)


def test_casts_between_dtypes_are_those_that_torch_makes(monkeypatch) -> None:
    inputs, outline = [TensorType(name="x", dtype="float32", shape=("batch", 8))], Outline()
    model = traced(Mixed(), inputs, ["y"], 18)
    assert "Cast" in {node.op_type for node in model.graph}
    ours = outline(model.graph)
    monkeypatch.setattr(type_promotion, "from_the_trace", nullcontext)
    assert outline(traced(Mixed(), inputs, ["y"], 18).graph) == ours


class Narrow(nn.Module):
    def forward(self, *tensors: Tensor) -> Tensor:
        return tensors[0].narrow(1, 0, 2).T.contiguous()


def test_other_operators_are_left_to_torch() -> None:
    """narrow and T are made of other operators, and not known here."""
    inputs = [TensorType(name="x", dtype="float32", shape=("batch", 8))]
    model = traced(Narrow(), inputs, ["y"], 18)
    assert {"Slice", "Transpose"} <= {node.op_type for node in model.graph}


@pytest.mark.filterwarnings("ignore")  # torch's own
def test_outside_of_an_export_torch_decomposes_as_ever() -> None:
    with composites.replaced_in_place():
        pass
    program = torch.export.export(nn.Flatten(), (torch.zeros(2, 3, 4),))
    assert program.run_decompositions() is not program

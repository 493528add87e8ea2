"""Mixtures of experts in two forms: for few tokens the matrices of each one's experts are gathered;
for many, each expert takes all of its tokens at once.

transformers calls a registered function for every module of experts; ours computes what its
"batched_mm" does, and marks it with a node that `LoopExpertsPass` makes the choice of.
"""

import copy
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir
import torch
import torch.nn.functional as F
from onnx_ir.passes.common import InlinePass
from torch import Tensor, nn

from rope_export.decoder.branches import branch, only_for
from rope_export.decoder.modules import NUMBER, settings_of
from rope_export.decoder.stamping import Function, function_of
from rope_export.exporter.translation import cleaned, traced
from rope_export.interface import TensorType

DOMAIN = "rope_export.experts"
OPERATOR = "Chosen"

IMPLEMENTATION = "rope_export"
"""What transformers knows the function by."""

MANY, FEW = "by_expert", "by_token"
"""The two forms."""

PARAMETERS = (
    *("gate_up_proj", "gate_up_proj_bias", "up_proj", "up_proj_bias"),
    *("down_proj", "down_proj_bias"),
)
"""What experts hold, each a stack over them."""


class OneExpert(nn.Module):
    """One expert on some tokens, its parameters given."""

    def __init__(self, experts: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.experts: Any = _bare(experts)
        self.names = names

    def forward(self, *tensors: Tensor) -> Tensor:
        """tensors: tokens (N, H), the router's factors (N), and the parameters in order.
        Returns: float32 (N, H)."""
        x, factors, *parameters = tensors
        given = dict(zip(self.names, parameters, strict=True))
        if self.experts.has_gate:
            y = self.experts._apply_gate(self._product(x, given, "gate_up_proj"))
        else:
            y = self.experts.act_fn(self._product(x, given, "up_proj"))
        return (self._product(y, given, "down_proj") * factors[:, None]).float()

    def _product(self, x: Tensor, given: dict[str, Tensor], name: str) -> Tensor:
        matrix = given[name].T if self.experts.is_transposed else given[name]
        return F.linear(x, matrix, given.get(f"{name}_bias"))


def _bare(module: nn.Module) -> nn.Module:
    """A copy of a module with neither parameters nor hooks."""
    bare = copy.copy(module)
    bare.__dict__ = module.__dict__ | {
        "_parameters": {},
        "_forward_hooks": OrderedDict(),
        "_forward_pre_hooks": OrderedDict(),
        "_modules": {name: _bare(child) for name, child in module.named_children()},
    }
    return bare


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """How a module of experts was called. names: of its parameters, in order. hidden, factors:
    dtypes of its tokens and of the router's factors."""

    names: tuple[str, ...]
    hidden: torch.dtype
    factors: torch.dtype


@dataclass
class Experts:
    """The modules of experts of a model's layers, and those that were traced, by their number."""

    layers: Sequence[nn.Module]
    kinds: dict[int, _Kind] = field(default_factory=dict)

    @property
    def _modules(self) -> list[Any]:
        inside = (module for layer in self.layers for module in layer.modules())
        return [module for module in inside if hasattr(module, "_apply_gate")]

    @contextmanager
    def registered(self, model: Any) -> Iterator[None]:
        """Has the model's experts computed by `_compute`."""
        from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

        for number, module in enumerate(self._modules):
            setattr(module, NUMBER, number)  # what is called in a trace is no module
        ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, self._compute)
        model.set_experts_implementation(IMPLEMENTATION)
        try:
            yield
        finally:
            model.set_experts_implementation("batched_mm")

    def _compute(
        self, module: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
    ) -> Tensor:
        """hidden_states (T, H), and of each token k experts and their factors (T, k) to (T, H)."""
        from transformers.integrations.moe import batched_mm_experts_forward

        output = batched_mm_experts_forward(module, hidden_states, top_k_index, top_k_weights)
        names = tuple(x for x in PARAMETERS if getattr(module, x, None) is not None)
        at = getattr(module, NUMBER, None)
        if at is None or module.has_post_expert_norm:
            return output
        kind = _Kind(names=names, hidden=hidden_states.dtype, factors=top_k_weights.dtype)
        self.kinds[at] = kind
        return torch.onnx.ops.symbolic(
            f"{DOMAIN}::{OPERATOR}",
            (
                output,
                hidden_states,
                top_k_index,
                top_k_weights,
                *(getattr(module, x) for x in names),
            ),
            {"kind": at, "experts": module.num_experts},
            dtype=output.dtype,
            shape=output.shape,
            version=1,
        )

    def alike(self, at: int) -> object:
        """What modules that one function serves have in common."""
        module, kind = self._modules[at], self.kinds[at]
        shapes = tuple(getattr(module, name).shape for name in kind.names)
        return type(module), kind, shapes, tuple(settings_of(module))

    def function(self, at: int, opset: int) -> Function:
        """One expert as a local function."""
        kind, module = self.kinds[at], self._modules[at]
        matrix = getattr(module, kind.names[0])
        width = int(matrix.shape[-2 if module.is_transposed else -1])
        dtypes = (str(x).removeprefix("torch.") for x in (kind.hidden, kind.factors))
        tensors = [
            TensorType(name=name, dtype=dtype, shape=shape)
            for name, dtype, shape in zip(
                ("tokens", "factors"), dtypes, (("sequence", width), ("sequence",)), strict=True
            )
        ]
        for name in kind.names:
            parameter = getattr(module, name)
            dtype = str(parameter.dtype).removeprefix("torch.")
            tensors.append(TensorType(name=name, dtype=dtype, shape=tuple(parameter.shape[1:])))
        expert = OneExpert(module, kind.names)
        return function_of(
            cleaned(traced(expert, tensors, ["out"], opset), expert, ""), f"expert{at}"
        )


@dataclass
class LoopExpertsPass(ir.passes.InPlacePass):
    """Gives each mixture of experts both forms. experts: those that were traced."""

    experts: Experts
    opset: int

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        nodes = [x for x in graph if (x.domain, x.op_type) == (DOMAIN, OPERATOR)]
        functions: dict[object, Function] = {}
        for node in nodes:
            at = node.attributes["kind"].as_int()
            alike = self.experts.alike(at)
            if alike not in functions:
                functions[alike] = self.experts.function(at, self.opset)
                function = functions[alike].function
                model.functions[function.identifier()] = function
            _choose(graph, node, functions[alike])
        model.opset_imports.pop(DOMAIN, None)
        if nodes:
            InlinePass()(model)
            graph.sort()
        return ir.passes.PassResult(model, bool(nodes))


def _choose(graph: ir.Graph, node: ir.Node, function: Function) -> None:
    """The choice in the place of its mark."""
    output, hidden, index, factors, *parameters = node.inputs
    assert output is not None
    experts = node.attributes["experts"].as_int()
    size = ir.node("Size", [index])
    bound = ir.node("Constant", [], {"value": ir.tensor(experts, dtype=ir.DataType.INT64)})
    many = ir.node("Greater", [size.outputs[0], bound.outputs[0]])
    graph.insert_before(node, [size, bound, many])
    result = node.outputs[0]
    name = str(result.name)
    ir.convenience.replace_all_uses_with(result, output, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    output.name = name
    body = _body(function, [hidden, index, factors], parameters, name)
    loop = _loop(body, experts, hidden, output)
    moved = only_for(graph, [output])
    branch(graph, many.outputs[0], loop, moved, [output], (MANY, FEW), f"{name}/experts")


def _loop(body: ir.Graph, experts: int, hidden: ir.Value | None, like: ir.Value) -> list[ir.Node]:
    """Each expert's tokens through it, added up."""
    count = ir.node("Constant", [], {"value": ir.tensor(experts, dtype=ir.DataType.INT64)})
    shape = ir.node("Shape", [hidden])
    zeros = ir.node("ConstantOfShape", [shape.outputs[0]], {"value": ir.tensor([0.0])})
    inputs = [count.outputs[0], None, zeros.outputs[0]]
    loop = ir.node("Loop", inputs, {"body": body})
    dtype = ir.DataType.FLOAT if like.dtype is None else like.dtype
    return [count, shape, zeros, loop, ir.node("Cast", [loop.outputs[0]], {"to": dtype})]


def _body(
    function: Function,
    tokens: list[ir.Value | None],
    parameters: list[ir.Value | None],
    name: str,
) -> ir.Graph:
    """One expert in the loop, of its number, whether to go on, and the sum so far (T, H).

    name: of what is computed, by which its values are called.
    """
    hidden, index, factors = tokens
    at = ir.val("expert", ir.DataType.INT64, [])
    going = ir.val("going", ir.DataType.BOOL, [])
    total = ir.val("total", ir.DataType.FLOAT, [None, None])
    hits = ir.node("Equal", [index, at])
    places = ir.node("NonZero", hits.outputs)
    by_hit = ir.node("Transpose", places.outputs, {"perm": [1, 0]})
    first = ir.node("Constant", [], {"value": ir.tensor(0, dtype=ir.DataType.INT64)})
    rows = ir.node("Gather", [places.outputs[0], first.outputs[0]], {"axis": 0})
    own = ir.node("Gather", [hidden, rows.outputs[0]], {"axis": 0})
    scales = ir.node("GatherND", [factors, by_hit.outputs[0]])
    matrices = [ir.node("Gather", [parameter, at], {"axis": 0}) for parameter in parameters]
    inputs = [own.outputs[0], scales.outputs[0], *(x.outputs[0] for x in matrices)]
    called = ir.Node(function.function.domain, function.name, inputs, name=function.name)
    axis = ir.node("Constant", [], {"value": ir.tensor([1], dtype=ir.DataType.INT64)})
    column = ir.node("Unsqueeze", [rows.outputs[0], axis.outputs[0]])
    added = [total, column.outputs[0], called.outputs[0]]
    after = ir.node("ScatterND", added, {"reduction": "add"})
    goes_on = ir.node("Identity", [going])
    nodes = [hits, places, by_hit, first, rows, own, scales, *matrices, called, axis, column, after]
    inner = [at, going, total, *(x for node in (*nodes, goes_on) for x in node.outputs)]
    for number, value in enumerate(inner):
        value.name = f"{name}/expert/{number}"
    outputs = [goes_on.outputs[0], after.outputs[0]]
    every = [*nodes, goes_on]
    return ir.Graph([at, going, total], outputs, nodes=every, name=f"{name}/expert")

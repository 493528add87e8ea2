"""Puts the traced bodies in place of the skeleton's layer nodes, and what layers share before them.

Each body becomes a local function whose inputs are also its weights; inlined, the calls of one
function differ in nothing but the tensors that they name.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes.common import (
    CommonSubexpressionEliminationPass,
    InlinePass,
    LiftConstantsToInitializersPass,
    RemoveUnusedNodesPass,
)

from rope_export.decoder.skeleton import DOMAIN
from rope_export.errors import RopeExportError

RESIDUAL = "layers.{}/hidden_states"
"""The name of the value that enters a layer, by its index; and of the one that leaves the last."""


@dataclass(frozen=True, kw_only=True)
class Function:
    """A traced module as a local function. weights: names of its last inputs, in order."""

    function: ir.Function
    weights: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.function.name


@dataclass(frozen=True, kw_only=True)
class Stamp:
    """One layer: its body, and what it has in the place of that one's inputs.

    inputs: names of the values between the hidden states, which the node itself has, and the extra
    arguments. outputs: names of the values that follow the hidden states. weights: name of this
    layer's initializer for each weight of the body.
    """

    function: Function
    inputs: Sequence[str]
    outputs: Sequence[str]
    weights: Mapping[str, str]


def function_of(model: ir.Model, name: str, weights: Collection[str] = ()) -> Function:
    """A traced model as a local function. weights: names of those of its initializers that become
    inputs; the others become constants."""
    graph = model.graph
    used = [weight for weight in graph.initializers if weight in weights]
    for weight in used:
        value = graph.initializers.pop(weight)
        value.const_value = None
        graph.inputs.append(value)
    for value in list(graph.initializers.values()):
        assert value.const_value is not None
        constant = ir.node("Constant", [], {"value": value.const_value})
        graph.insert_before(graph[0], constant)
        del graph.initializers[str(value.name)]
        ir.convenience.replace_all_uses_with(value, constant.outputs[0])
    function = ir.Function(DOMAIN, name, graph=graph, attributes=())
    return Function(function=function, weights=tuple(used))


def stamped(skeleton: ir.Model, stamps: Sequence[Stamp], values: Mapping[str, ir.Value]) -> None:
    """Replaces the skeleton's layer nodes, in place, and tidies up.

    values: every value that stamps name and that is no weight; weights are added as initializers
    without contents.
    """
    graph = skeleton.graph
    nodes = [x for x in graph if (x.domain, x.op_type) == (DOMAIN, "Layer")]
    for node in nodes:
        index = node.attributes["index"].as_int()
        # One node stands for every layer where the model only hands on what the last one gave.
        chain = stamps if len(nodes) == 1 else stamps[index : index + 1]
        hidden, *extras = node.inputs
        assert hidden is not None
        for at, stamp in enumerate(chain, index):
            hidden.name = RESIDUAL.format(at)
            call = _call(graph, [hidden, *extras], stamp, values, f"layers.{at}")
            graph.insert_before(node, call)
            hidden = call.outputs[0]
            hidden.type, hidden.shape = node.outputs[0].type, node.outputs[0].shape
            for name, output in zip(stamp.outputs, call.outputs[1:], strict=True):
                output.name = name
                graph.outputs.append(output)
            function = stamp.function.function
            skeleton.functions[function.identifier()] = function
        hidden.name = RESIDUAL.format(index + len(chain))
        ir.convenience.replace_all_uses_with(node.outputs[0], hidden, replace_graph_outputs=True)
        graph.remove(node, safe=True)
    for tidy in (
        InlinePass(),
        LiftConstantsToInitializersPass(),
        CommonSubexpressionEliminationPass(),
        RemoveUnusedNodesPass(),
    ):
        tidy(skeleton)
    _name_nodes(graph, len(stamps))


def _name_nodes(graph: ir.Graph, layers: int) -> None:
    """Names the nodes of each layer after it and their operators, as profilers show them."""
    borders = {RESIDUAL.format(at): at for at in range(layers + 1)}
    layer, counts = layers, Counter[str]()
    for node in graph:
        if layer < layers:
            name = f"layers.{layer}/{node.op_type}"
            node.name = f"{name}_{counts[name]}" if counts[name] else name
            counts[name] += 1
        for output in node.outputs:
            layer = borders.get(str(output.name), layer)


def _call(
    graph: ir.Graph,
    tensors: Sequence[ir.Value | None],
    stamp: Stamp,
    values: Mapping[str, ir.Value],
    name: str,
) -> ir.Node:
    """A call of the stamp's function. tensors: the hidden states and the extra arguments."""
    function = stamp.function.function
    first, *extras = tensors
    by_name = {value.name: value for value in function.inputs}
    weights = [
        _weight(graph, stamp.weights[weight], by_name[weight]) for weight in stamp.function.weights
    ]
    inputs = [first, *(values[x] for x in stamp.inputs), *extras, *weights]
    if len(inputs) != len(function.inputs):
        raise RopeExportError(
            f"{name}: its body takes {len(function.inputs)} tensors, not {len(inputs)}."
        )
    outputs = 1 + len(stamp.outputs)
    return ir.Node(DOMAIN, function.name, inputs, num_outputs=outputs, name=name)


def _weight(graph: ir.Graph, name: str, like: ir.Value) -> ir.Value:
    if name not in graph.initializers:
        graph.initializers[name] = ir.Value(name=name, shape=like.shape, type=like.type)
    return graph.initializers[name]


def merged_before(
    skeleton: ir.Model, shared: ir.Model, inputs: Mapping[str, ir.Value]
) -> dict[str, ir.Value]:
    """Calls `shared` at the front of the skeleton, whose inputs are `inputs` by name.

    Returns: its outputs by name.
    """
    graph, function = skeleton.graph, function_of(shared, "shared").function
    skeleton.functions[function.identifier()] = function
    call = ir.Node(
        DOMAIN,
        "shared",
        [inputs[str(value.name)] for value in function.inputs],
        num_outputs=len(function.outputs),
        name="shared",
    )
    for output, ours in zip(function.outputs, call.outputs, strict=True):
        ours.name, ours.type, ours.shape = output.name, output.type, output.shape
    graph.insert_before(graph[0], call)
    return {str(output.name): output for output in call.outputs}

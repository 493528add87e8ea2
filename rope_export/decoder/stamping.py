"""Puts the traced bodies in place of the skeleton's layer nodes, and what layers share before them.

Each body becomes a local function whose inputs are also its weights; inlined, the calls of one
function differ in nothing but the tensors that they name.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes.common import (
    CommonSubexpressionEliminationPass,
    DeduplicateInitializersPass,
    InlinePass,
    LiftConstantsToInitializersPass,
    RemoveUnusedNodesPass,
)

from rope_export.decoder.skeleton import DOMAIN
from rope_export.errors import RopeExportError

TIDY = (
    InlinePass(),
    LiftConstantsToInitializersPass(),
    DeduplicateInitializersPass(),
    CommonSubexpressionEliminationPass(),
    RemoveUnusedNodesPass(),
)
"""Passes after which nothing is in the model twice."""


@dataclass(frozen=True, kw_only=True)
class Stamp:
    """One layer: its body, and what this layer has in the place of the body's inputs.

    body: name of the function. inputs: names of the values before the extra arguments, in order,
    of which the first, the hidden states, is the node's own. outputs: names of the values that
    follow the hidden states. weights: name of the layer's tensor for each of the body's.
    """

    body: str
    inputs: Sequence[str]
    outputs: Sequence[str]
    weights: Mapping[str, str]


def function_of(
    model: ir.Model, name: str, weights: Collection[str] = ()
) -> tuple[ir.Function, list[str]]:
    """A traced body as a local function, and the names of the weights that follow its inputs; its
    other initializers are constants."""
    graph = model.graph
    used = [weight for weight in graph.initializers if weight in weights]
    for weight in used:
        value = graph.initializers.pop(weight)
        value.const_value = None
        graph.inputs.append(value)
    for value in list(graph.initializers.values()):
        constant = ir.node("Constant", [], {"value": value.const_value})
        graph.insert_before(graph[0], constant)
        del graph.initializers[str(value.name)]
        ir.convenience.replace_all_uses_with(value, constant.outputs[0])
    return ir.Function(DOMAIN, name, graph=graph, attributes=()), used


def stamped(
    skeleton: ir.Model,
    bodies: Mapping[str, tuple[ir.Function, list[str]]],
    stamps: Sequence[Stamp],
    values: Mapping[str, ir.Value],
) -> None:
    """Replaces the skeleton's layer nodes, in place.

    values: every value that stamps name and that is no weight; weights are added as initializers
    without contents.
    """
    graph = skeleton.graph
    known = dict(values)
    for node in [x for x in graph if (x.domain, x.op_type) == (DOMAIN, "Layer")]:
        stamp = stamps[node.attributes["index"].as_int()]
        function, weights = bodies[stamp.body]
        skeleton.functions[function.identifier()] = function
        first, *extras = node.inputs
        inputs = [first, *(known[name] for name in stamp.inputs), *extras]
        by_name = {value.name: value for value in function.inputs}
        for weight in weights:
            inputs.append(_weight(graph, stamp.weights[weight], by_name[weight]))
        call = ir.Node(
            DOMAIN,
            stamp.body,
            inputs,
            num_outputs=1 + len(stamp.outputs),
            name=f"layers.{node.attributes['index'].as_int()}",
        )
        if len(inputs) != len(function.inputs):
            raise RopeExportError(
                f"layer {call.name}: its body takes {len(function.inputs)} tensors, not "
                f"{len(inputs)}."
            )
        graph.insert_before(node, call)
        ir.convenience.replace_all_uses_with(
            node.outputs[0], call.outputs[0], replace_graph_outputs=True
        )
        for name, output in zip(stamp.outputs, call.outputs[1:], strict=True):
            output.name = name
            graph.outputs.append(output)
        graph.remove(node, safe=True)
    for tidy in TIDY:
        tidy(skeleton)


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
    graph = skeleton.graph
    function, _ = function_of(shared, "shared")
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
    first = next(iter(graph), None)
    if first is None:
        graph.append(call)
    else:
        graph.insert_before(first, call)
    return {str(output.name): output for output in call.outputs}

"""A decoder whose calls have no padding: positions are slots, and a 0 in the mask is not passed
over in silence."""

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from rope_export.decoder.shared import NAN, SLOTS
from rope_export.interface import Interface


def without_padding(model: ir.Model, positions: str, interface: Interface) -> None:
    """Takes the input of positions away from a model, and makes its logits NaN where the mask has
    a 0. Its shared parts give `SLOTS` and `NAN`."""
    graph = model.graph
    values = {str(value.name): value for node in graph for value in node.outputs}
    inputs = {str(value.name): value for value in graph.inputs}
    given, tokens = inputs[positions], inputs[interface.main_input]
    for node, at in list(given.uses()):
        sized = node.op_type == "Shape"
        node.replace_input_with(at, tokens if sized else values[SLOTS])
    graph.inputs.remove(given)
    _add_to(graph, next(x for x in graph.outputs if x.name == interface.main_output), values[NAN])
    graph.sort()  # what used the positions may come before the slots
    RemoveUnusedNodesPass()(model)


def _add_to(graph: ir.Graph, output: ir.Value, number: ir.Value) -> None:
    """Adds a number to an output of the graph."""
    node = ir.node("Add", [output, number])
    added, name = node.outputs[0], output.name
    added.type, added.shape = output.type, output.shape
    graph.append(node)
    graph.outputs[list(graph.outputs).index(output)] = added
    output.name, added.name = f"{name}/before", name

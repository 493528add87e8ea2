"""Puts the traced bodies in place of the skeleton's layer nodes, and what layers share before them.

Each body becomes a local function whose inputs are also its weights; inlined, the calls of one
function differ in nothing but the tensors that they name.
"""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import onnx_ir as ir
from onnx_ir.passes.common import (
    CommonSubexpressionEliminationPass,
    InlinePass,
    LiftConstantsToInitializersPass,
    RemoveUnusedNodesPass,
)

from rope_export.attention.operators import BY_FEATURE, BY_SLOT
from rope_export.decoder.body import AROUND
from rope_export.decoder.shared import Part
from rope_export.decoder.skeleton import DOMAIN
from rope_export.errors import RopeExportError
from rope_export.exporter.taps import TapFacts

RESIDUAL = "layers.{}/hidden_states"
"""The name of the value that enters a layer, by its index; and of the one that leaves the last."""

LAYER = "rope_export.layer"
"""Metadata of the nodes of a layer: its index."""

BODY = "body"
"""How the names of values of a body begin that can be looked at."""

MASKS = ("allowed", "bias")
"""Fields of a visibility that are over slots."""

_COUNTED = re.compile(r"_\d+$")


@dataclass(frozen=True, kw_only=True)
class Function:
    """A traced module as a local function. weights: names of its last inputs, in order. taps:
    tensors that can be looked at, by their names in the layer."""

    function: ir.Function
    weights: tuple[str, ...]
    taps: Mapping[str, TapFacts] = field(default_factory=dict)

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


def stamped(
    skeleton: ir.Model, stamps: Sequence[Stamp], values: Mapping[str, ir.Value]
) -> dict[str, TapFacts]:
    """Replaces the skeleton's layer nodes, in place, and tidies up.

    values: every value that stamps name and that is no weight; weights are added as initializers
    without contents.
    Returns: the tensors of every layer that can be looked at.
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
            call.metadata_props[LAYER] = str(at)
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
    InlinePass()(skeleton)
    taps = _named_taps(graph, stamps)
    for tidy in (
        LiftConstantsToInitializersPass(),
        CommonSubexpressionEliminationPass(),
        RemoveUnusedNodesPass(),
    ):
        tidy(skeleton)
    _name_nodes(graph, len(stamps))
    return taps


def body_taps(
    taps: Mapping[str, TapFacts], path: str, parts: Sequence[Part]
) -> dict[str, TapFacts]:
    """What can be looked at in a layer's body, by the names that it has in the layer.

    taps: as traced. path: of the attention. parts: what the layers share of it.
    """
    inside = {part.field: (part.tensor.name, BY_FEATURE) for part in parts}
    inside |= {name: (value, BY_SLOT) for name, (value, _) in inside.items() if name in MASKS}
    shared = {name: x for name, x in inside.items() if name in (*MASKS, "cos", "sin")}
    return {
        **{f"{path}.{name}": TapFacts(value=x, axes=axes) for name, (x, axes) in shared.items()},
        **{
            name.removeprefix(AROUND) if name.startswith(AROUND) else f"{path}.{name}": facts
            for name, facts in taps.items()
        },
    }


def _named_taps(graph: ir.Graph, stamps: Sequence[Stamp]) -> dict[str, TapFacts]:
    """Names the values of every layer that can be looked at after it, and tells what they are."""
    tensors = [
        {facts.value: tensor for tensor, facts in reversed(list(stamp.function.taps.items()))}
        for stamp in stamps
    ]
    names: dict[tuple[int, str], str] = {}
    for node in graph:
        layer = int(node.metadata_props.get(LAYER, -1))
        for output in node.outputs if layer >= 0 else ():
            name = str(output.name)  # which the next call of the body has with a number
            value = name if name in tensors[layer] else _COUNTED.sub("", name)
            if value.startswith(f"{BODY}/") and value in tensors[layer]:
                output.name = f"layers.{layer}/{tensors[layer][value]}"
                names[layer, value] = output.name
    taps = {}
    for at, stamp in enumerate(stamps):
        outputs = (RESIDUAL.format(at + 1), *stamp.outputs)
        function = stamp.function.function
        given = dict(zip((x.name for x in function.outputs), outputs, strict=True))
        for tensor, facts in stamp.function.taps.items():
            value = names.get((at, facts.value)) or given.get(facts.value, facts.value)
            taps[f"layers.{at}.{tensor}"] = replace(facts, value=value)
    return taps


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

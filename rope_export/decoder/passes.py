"""Graph passes over a whole decoder: norms that take the residual, products that share an input."""

from collections import defaultdict
from dataclasses import dataclass, field

import onnx_ir as ir

MICROSOFT = "com.microsoft"
QUANTIZED = "MatMulNBits"


class SkipNormPass(ir.passes.InPlacePass):
    """Joins the sum of two tensors of (batch, sequence, width) and the RMS norm of it in
    SkipSimplifiedLayerNormalization, whose last output is the sum.

    Source: ONNX Runtime, contrib operators.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph, modified = model.graph, False
        for node in list(graph):
            add = _summed(node)
            if add is None:
                continue
            total, normed = add.outputs[0], node.outputs[0]
            eps = ir.AttrFloat32("epsilon", node.attributes["epsilon"].as_float())
            joined = ir.Node(
                MICROSOFT,
                "SkipSimplifiedLayerNormalization",
                [*add.inputs, node.inputs[1]],
                [eps],
                num_outputs=4,
                name=node.name,
            )
            for at in (1, 2):
                joined.outputs[at].name = ""
            for old, new in ((normed, joined.outputs[0]), (total, joined.outputs[3])):
                new.name, new.type, new.shape = old.name, old.type, old.shape
                ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
            graph.insert_before(add, joined)
            graph.remove([node, add], safe=True)
            modified = True
        if modified:
            model.opset_imports[MICROSOFT] = 1
        return ir.passes.PassResult(model, modified)


def _summed(node: ir.Node) -> ir.Node | None:
    """The Add of two residuals that an RMSNormalization is of, if its weights are at hand there."""
    if node.op_type != "RMSNormalization" or node.inputs[0] is None or node.inputs[1] is None:
        return None
    add, weight = node.inputs[0].producer(), node.inputs[1]
    if add is None or add.op_type != "Add" or not weight.is_initializer():
        return None
    for value in add.inputs:
        if value is None or value.is_initializer() or value.shape is None or len(value.shape) != 3:
            return None
    first, second = (value.shape for value in add.inputs if value is not None)
    return add if first == second else None


@dataclass
class PackProjectionsPass(ir.passes.InPlacePass):
    """Makes one matrix product and a Split of those that have the same input: of two or more whose
    weights are quantized, which round the input once then, of three or more others; a Split costs
    as much as a product less saves.

    packed: afterwards, the initializers that each new one is made of, side by side.
    """

    packed: dict[str, list[str]] = field(default_factory=dict)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        groups: dict[object, list[ir.Node]] = defaultdict(list)
        for node in graph:
            if _weights_of(node):
                groups[_likeness(node)].append(node)
        shared = [nodes for nodes in groups.values() if len(nodes) >= _least(nodes[0])]
        for nodes in shared:
            self._pack(graph, nodes)
        return ir.passes.PassResult(model, bool(shared))

    def _pack(self, graph: ir.Graph, nodes: list[ir.Node]) -> None:
        axis = 0 if nodes[0].op_type == QUANTIZED else 1
        widths = [_dimensions(_weights_of(node)[0])[axis] for node in nodes]
        wholes = [
            self._side_by_side(graph, parts, axis, sum(widths))
            for parts in zip(*map(_weights_of, nodes), strict=True)
        ]
        attributes = dict(nodes[0].attributes)
        if axis == 0:
            attributes["N"] = ir.AttrInt64("N", sum(widths))
        name = str(wholes[0].name)
        product = ir.Node(
            nodes[0].domain,
            nodes[0].op_type,
            [nodes[0].inputs[0], *wholes],
            attributes.values(),
            name=name,
        )
        product.outputs[0].name, product.outputs[0].type = f"{name}_out", nodes[0].outputs[0].type
        split = ir.Node(
            "",
            "Split",
            [product.outputs[0], _sizes(graph, widths)],
            [ir.AttrInt64("axis", -1)],
            num_outputs=len(nodes),
            name=f"{name}_split",
        )
        graph.insert_before(nodes[0], [product, split])
        for node, output in zip(nodes, split.outputs, strict=True):
            old = node.outputs[0]
            output.name, output.type, output.shape = old.name, old.type, old.shape
            ir.convenience.replace_all_uses_with(old, output, replace_graph_outputs=True)
        for node in nodes:
            weights = _weights_of(node)
            graph.remove(node, safe=True)
            for weight in weights:
                del graph.initializers[str(weight.name)]

    def _side_by_side(
        self, graph: ir.Graph, parts: tuple[ir.Value, ...], axis: int, width: int
    ) -> ir.Value:
        """A new initializer for several."""
        names = [str(part.name) for part in parts]
        shape = list(_dimensions(parts[0]))
        shape[axis] = width
        whole = ir.Value(name=packed_name(names), type=parts[0].type, shape=ir.Shape(shape))
        graph.initializers[str(whole.name)] = whole
        self.packed[str(whole.name)] = names
        return whole


def _least(node: ir.Node) -> int:
    """How many products like this one are worth a Split."""
    return 2 if node.op_type == QUANTIZED else 3


def _sizes(graph: ir.Graph, widths: list[int]) -> ir.Value:
    """The initializer with the sizes of a Split."""
    name = f"split_{'_'.join(map(str, widths))}"
    if name not in graph.initializers:
        value = ir.Value(name=name, type=ir.TensorType(ir.DataType.INT64))
        value.const_value = ir.tensor(widths, dtype=ir.DataType.INT64, name=name)
        value.shape = ir.Shape((len(widths),))
        graph.initializers[name] = value
    return graph.initializers[name]


def _weights_of(node: ir.Node) -> list[ir.Value]:
    """The weights of a product, if nothing else uses them: a matrix, or packed ones and scales."""
    expected = {("", "MatMul"): 2, (MICROSOFT, QUANTIZED): 3}.get((node.domain, node.op_type))
    if len(node.inputs) != expected:
        return []
    weights = [value for value in node.inputs[1:] if value is not None]
    alone = all(x.is_initializer() and x.shape is not None and len(x.uses()) == 1 for x in weights)
    return weights if alone and (expected == 3 or len(_dimensions(weights[0])) == 2) else []


def _dimensions(value: ir.Value) -> tuple[int, ...]:
    return () if value.shape is None else value.shape.numpy()


def _likeness(node: ir.Node) -> object:
    """What products must share to become one."""
    kinds = tuple(value.dtype for value in node.inputs[1:] if value is not None)
    attributes = {name: attr.value for name, attr in node.attributes.items() if name != "N"}
    return node.op_type, node.inputs[0], kinds, tuple(sorted(attributes.items()))


def packed_name(names: list[str]) -> str:
    """A name for tensors that lie side by side: what their names share, and what they do not."""
    parts = [name.split(".") for name in names]
    start = 0
    while all(len(x) > start + 1 and x[start] == parts[0][start] for x in parts):
        start += 1
    end = 0
    while all(len(x) - start - end > 1 and x[-1 - end] == parts[0][-1 - end] for x in parts):
        end += 1
    middle = "+".join(".".join(x[start : len(x) - end]) for x in parts)
    return ".".join([*parts[0][:start], middle, *parts[0][len(parts[0]) - end :]])

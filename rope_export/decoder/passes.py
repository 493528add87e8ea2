"""Graph passes over a whole decoder: norms that take the residual, products that share an input."""

from collections import defaultdict
from dataclasses import dataclass, field

import onnx_ir as ir

MICROSOFT = "com.microsoft"


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
    """Makes one matrix product and a Split of those that have the same input.

    packed: afterwards, the initializers that each new one is made of, side by side.
    """

    packed: dict[str, list[str]] = field(default_factory=dict)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        groups: dict[tuple[ir.Value, object], list[ir.Node]] = defaultdict(list)
        for node in graph:
            weight = _weight_of(node)
            if weight is not None and node.inputs[0] is not None and weight.shape is not None:
                groups[node.inputs[0], weight.dtype].append(node)
        for nodes in groups.values():
            if len(nodes) > 1:
                self._pack(graph, nodes)
        return ir.passes.PassResult(model, any(len(nodes) > 1 for nodes in groups.values()))

    def _pack(self, graph: ir.Graph, nodes: list[ir.Node]) -> None:
        weights = [weight for node in nodes if (weight := _weight_of(node)) is not None]
        names = [str(weight.name) for weight in weights]
        shapes = [weight.shape.numpy() for weight in weights if weight.shape is not None]
        widths = [shape[1] for shape in shapes]
        whole = ir.Value(
            name=packed_name(names),
            type=weights[0].type,
            shape=ir.Shape((shapes[0][0], sum(widths))),
        )
        graph.initializers[str(whole.name)] = whole
        self.packed[str(whole.name)] = names
        product = ir.Node("", "MatMul", [nodes[0].inputs[0], whole], name=str(whole.name))
        product.outputs[0].name, product.outputs[0].type = f"{whole.name}_out", whole.type
        sizes = ir.Value(name=f"split_{'_'.join(map(str, widths))}")
        sizes.const_value = ir.tensor(widths, dtype=ir.DataType.INT64, name=sizes.name)
        sizes.type, sizes.shape = ir.TensorType(ir.DataType.INT64), ir.Shape((len(widths),))
        sizes = graph.initializers.setdefault(str(sizes.name), sizes)
        split = ir.Node(
            "",
            "Split",
            [product.outputs[0], sizes],
            [ir.AttrInt64("axis", -1)],
            num_outputs=len(nodes),
            name=f"{whole.name}_split",
        )
        graph.insert_before(nodes[0], [product, split])
        for node, output in zip(nodes, split.outputs, strict=True):
            old = node.outputs[0]
            output.name, output.type, output.shape = old.name, old.type, old.shape
            ir.convenience.replace_all_uses_with(old, output, replace_graph_outputs=True)
        graph.remove(nodes, safe=True)
        for name in names:
            del graph.initializers[name]


def _weight_of(node: ir.Node) -> ir.Value | None:
    """The weight of a product that nothing else uses."""
    if node.op_type != "MatMul" or node.domain != "":
        return None
    weight = node.inputs[1]
    alone = weight is not None and weight.is_initializer() and len(weight.uses()) == 1
    matrix = alone and weight is not None and weight.shape is not None and len(weight.shape) == 2
    return weight if matrix else None


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

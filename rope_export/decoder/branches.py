"""Branches of a graph: nodes that are moved into one of two forms."""

from collections.abc import Collection, Sequence

import onnx_ir as ir


def only_for(graph: ir.Graph, values: Collection[ir.Value]) -> list[ir.Node]:
    """The nodes that compute these values and nothing else, in order."""
    own = {producer for producer in (value.producer() for value in values) if producer}
    for node in reversed(graph):
        users = [user for output in node.outputs for user, _ in output.uses()]
        goes_out = any(output.is_graph_output() for output in node.outputs)
        if users and not goes_out and all(user in own for user in users):
            own.add(node)
    return [node for node in graph if node in own]


def branch(
    graph: ir.Graph,
    condition: ir.Value,
    added: Sequence[ir.Node],
    moved: Sequence[ir.Node],
    values: Sequence[ir.Value],
    forms: tuple[str, str],
    name: str,
) -> None:
    """Makes an If, where the last of the moved nodes is, of new nodes and of those.

    added: the nodes of the first branch, whose last values stand for `values`. moved: those of the
    other. values: what the moved nodes give to others. forms: what the two branches are called.
    """
    outputs = [output for node in added for output in node.outputs]
    for at, output in enumerate(outputs):
        output.name = f"{name}/{forms[0]}/{at}"  # what a graph gives is its own alone
    outputs = outputs[-len(values) :]
    names = [str(value.name) for value in values]
    chosen = ir.Node("", "If", [condition], num_outputs=len(values), name=name)
    graph.insert_before(moved[-1], chosen)
    for value, other, new, own in zip(values, outputs, chosen.outputs, names, strict=True):
        new.type, new.shape = value.type, value.shape
        other.type, other.shape = value.type, value.shape
        ir.convenience.replace_all_uses_with(value, new, replace_graph_outputs=True)
        new.name, value.name, other.name = own, f"{own}/{forms[1]}", f"{own}/{forms[0]}"
    graph.remove(moved)
    for attribute, nodes, gives, form in (
        ("then_branch", added, outputs, forms[0]),
        ("else_branch", moved, values, forms[1]),
    ):
        inner = ir.Graph([], gives, nodes=nodes, name=f"{name}/{form}")
        chosen.attributes.add(ir.AttrGraph(attribute, inner))

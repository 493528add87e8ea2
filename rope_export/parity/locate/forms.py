"""A decoder's model in one of the two forms of its attention, without branches: what is in a branch
cannot be looked at."""

from dataclasses import replace

import onnx

from rope_export.decoder.two_forms import GENERAL, PLAIN
from rope_export.parity.decoder.cut import Cutter

BRANCHES = {PLAIN: "then_branch", GENERAL: "else_branch"}


def in_form(cutter: Cutter, form: str) -> Cutter | None:
    """Cuts layers out of the model with every branch of this form in the place of its If; none if
    the model has one form alone."""
    model = onnx.ModelProto()
    model.CopyFrom(cutter.model)
    graph = model.graph
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        branch = _branch(node, form)
        if branch is None:
            nodes.append(node)
            continue
        names = {own.name: given for own, given in zip(branch.output, node.output, strict=True)}
        for inner in branch.node:
            moved = onnx.NodeProto()
            moved.CopyFrom(inner)
            moved.input[:] = [names.get(x, x) for x in inner.input]
            moved.output[:] = [names.get(x, x) for x in inner.output]
            nodes.append(moved)
        graph.initializer.extend(branch.initializer)
    if len(nodes) == len(graph.node) and all(map(_same, nodes, graph.node)):
        return None
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    contents = replace(cutter.contents, model=model.SerializeToString())
    return Cutter(contents, cutter.layers)


def _same(node: onnx.NodeProto, other: onnx.NodeProto) -> bool:
    return node.op_type == other.op_type


def _branch(node: onnx.NodeProto, form: str) -> onnx.GraphProto | None:
    """The branch of a node that is the form of an attention, or of what it needs."""
    if node.op_type != "If":
        return None
    branches = {x.name: x.g for x in node.attribute}
    branch = branches.get(BRANCHES[form])
    return branch if branch is not None and branch.name.endswith(f"/{form}") else None

"""A graph pass that gives attention a second form, for calls that need less of it: what padding
asks for is computed in a branch of its own."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

BIAS = 10
"""The input of GroupQueryAttention that is added to its scores."""

QUERY_LENGTHS = 16
"""Its input of new tokens for each row."""

_DROPPED = (BIAS, QUERY_LENGTHS)

PLAIN, GENERAL = "plain", "general"
"""The two forms."""


@dataclass
class TwoFormsPass(ir.passes.InPlacePass):
    """Gives GroupQueryAttention two forms, of which each call takes one. The plain one has neither
    a bias nor new tokens by row: right where the mask is all ones, and where there is one row, one
    new token of each, or nothing in the cache. It is faster in a prefill and in every step.

    mask: the input (batch, total). positions: the input (batch, sequence). biases: the names of
    values that say nothing but what the mask does. last: the index of each row's last token whose
    mask is 1, where the graph has it; it is the last one then.
    """

    mask: ir.Value
    positions: ir.Value
    biases: Collection[str]
    last: ir.Value | None = None

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        attending = [node for node in graph if self._has_two(node)]
        if not attending:
            return ir.passes.PassResult(model, False)
        asked = self._condition()
        graph.insert_before(graph[0], asked)
        condition = asked[-1].outputs[0]
        general = dict.fromkeys(
            value for node in attending for value in map(node.inputs.__getitem__, _DROPPED) if value
        )
        for node in attending:
            _attend_in_branches(graph, node, condition)
        for value in general:
            _only_in_general(graph, value, condition, [_unused(value)])
        gathered = self._gathered()
        if gathered is not None:
            hidden, token = gathered
            _only_in_general(graph, token, condition, _last_of(hidden))
        return ir.passes.PassResult(model, True)

    def _has_two(self, node: ir.Node) -> bool:
        """Whether a node attends with a bias that is nothing but padding."""
        if node.op_type != "GroupQueryAttention" or len(node.inputs) <= max(_DROPPED):
            return False
        bias = node.inputs[BIAS]
        return bias is not None and bias.name in self.biases

    def _condition(self) -> list[ir.Node]:
        """Nodes whose last one says whether the plain form is right."""
        one = ir.node("Constant", [], {"value": ir.tensor(1, dtype=ir.DataType.INT64)})
        lowest = ir.node("ReduceMin", [self.mask], {"keepdims": 0})
        ones = ir.node("GreaterOrEqual", [lowest.outputs[0], one.outputs[0]])
        sizes = ir.node("Shape", [self.positions])
        new = ir.node("Shape", [self.positions], {"start": 1})
        total = ir.node("Shape", [self.mask], {"start": 1})
        past = ir.node("Sub", [total.outputs[0], new.outputs[0]])
        more = ir.node("Add", [past.outputs[0], one.outputs[0]])
        all_sizes = ir.node("Concat", [sizes.outputs[0], more.outputs[0]], {"axis": 0})
        smallest = ir.node("ReduceMin", [all_sizes.outputs[0]], {"keepdims": 0})
        single = ir.node("Equal", [smallest.outputs[0], one.outputs[0]])
        both = ir.node("And", [ones.outputs[0], single.outputs[0]], name=PLAIN)
        both.outputs[0].name = PLAIN
        nodes = [one, lowest, ones, sizes, new, total, past, more, all_sizes, smallest, single]
        return [*nodes, both]

    def _gathered(self) -> tuple[ir.Value, ir.Value] | None:
        """The hidden states, and those of the last tokens, which are gathered by their index."""
        waiting = [] if self.last is None else [self.last]
        while waiting:
            for node, _ in waiting.pop().uses():
                if node.op_type == "GatherND" and node.inputs[0] is not None:
                    return node.inputs[0], node.outputs[0]
                waiting += node.outputs
        return None


def _like(value: ir.Value, other: ir.Value, name: str) -> None:
    value.name, value.type, value.shape = name, other.type, other.shape


def _choice(
    condition: ir.Value,
    plain: Sequence[ir.Node],
    general: Sequence[ir.Node],
    outputs: Sequence[ir.Value],
    name: str,
) -> ir.Node:
    """An If. plain, general: nodes of its branches, whose last one's outputs are the branch's.
    outputs: the values that it stands for, whose uses become its own."""
    branches = {
        branch: ir.Graph([], nodes[-1].outputs, nodes=nodes, name=f"{name}/{branch}")
        for branch, nodes in (("then_branch", plain), ("else_branch", general))
    }
    chosen = ir.node("If", [condition], branches, num_outputs=len(outputs), name=name)
    for new, old in zip(chosen.outputs, outputs, strict=True):
        _like(new, old, str(old.name))
    return chosen


def _attend_in_branches(graph: ir.Graph, node: ir.Node, condition: ir.Value) -> None:
    """Puts an attention into both branches of an If, into the first as the plain form."""
    forms = []
    for form in (PLAIN, GENERAL):
        inputs = list(node.inputs)
        for at in _DROPPED if form == PLAIN else ():
            inputs[at] = None
        copy = ir.Node(
            node.domain,
            node.op_type,
            inputs,
            node.attributes.values(),
            num_outputs=len(node.outputs),
            name=f"{node.name}/{form}",
        )
        for new, old in zip(copy.outputs, node.outputs, strict=True):
            _like(new, old, f"{old.name}/{form}")
        forms.append([copy])
    plain, general = forms
    chosen = _choice(condition, plain, general, node.outputs, str(node.name))
    graph.insert_before(node, chosen)
    for old, new in zip(node.outputs, chosen.outputs, strict=True):
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def _only_in_general(
    graph: ir.Graph, value: ir.Value, condition: ir.Value, plain: Sequence[ir.Node]
) -> None:
    """Moves what computes a value, and nothing else, into the general branch of an If. plain: the
    nodes of the other."""
    producer, name = value.producer(), str(value.name)
    assert producer is not None
    own = {producer}
    order = list(graph)
    for node in reversed(order):
        users = [user for output in node.outputs for user, _ in output.uses()]
        goes_out = any(output.is_graph_output() for output in node.outputs)
        if users and not goes_out and all(user in own for user in users):
            own.add(node)
    nodes = [node for node in order if node in own]
    after = next(node for node in order[order.index(producer) + 1 :] if node not in own)
    uses = [(user, at) for user, at in value.uses()]
    graph.remove(nodes)
    value.name = f"{name}/{GENERAL}"
    _like(plain[-1].outputs[0], value, f"{name}/{PLAIN}")
    chosen = _choice(condition, plain, nodes, [value], name)
    chosen.outputs[0].name = name
    for user, at in uses:
        user.replace_input_with(at, chosen.outputs[0])
    graph.insert_before(after, chosen)


def _unused(value: ir.Value) -> ir.Node:
    """A value of the same type and axes that nothing looks at."""
    assert value.dtype is not None
    assert value.shape is not None
    zeros = np.zeros([1] * len(value.shape), value.dtype.numpy())
    return ir.node("Constant", [], {"value": ir.tensor(zeros)})


def _last_of(hidden: ir.Value) -> list[ir.Node]:
    """The last token of every row."""
    last = ir.node("Constant", [], {"value": ir.tensor(-1, dtype=ir.DataType.INT64)})
    return [last, ir.node("Gather", [hidden, last.outputs[0]], {"axis": 1})]

"""A graph pass that gives attention a second form, for calls that need less of it: what padding
asks for is computed in a branch of its own."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from rope_export.decoder.branches import branch, only_for

BIAS = 10
"""The input of GroupQueryAttention that is added to its scores."""

QUERY_LENGTHS = 16
"""Its input of new tokens for each row."""

TABLES = (7, 8)
"""Its inputs of the cos and sin of every position."""

PLAIN, GENERAL = "plain", "general"
"""The two forms."""


@dataclass(frozen=True, kw_only=True)
class _Rotated:
    """What gives an attention its queries and keys: a Split in q, k and v, and the rotations of
    the first two. tables: cos and sin of every position."""

    split: ir.Node
    rotations: tuple[ir.Node, ir.Node]
    tables: tuple[ir.Value, ir.Value]

    @property
    def nodes(self) -> list[ir.Node]:
        return [self.split, *self.rotations]

    @property
    def interleaved(self) -> int:
        attribute = self.rotations[0].attributes.get("interleaved")
        return 0 if attribute is None else attribute.as_int()


@dataclass
class TwoFormsPass(ir.passes.InPlacePass):
    """Gives GroupQueryAttention two forms, of which each call takes one. The plain one has neither
    a bias nor new tokens by row, and where it can, it takes q, k and v as one tensor and rotates
    them itself. It is faster in a prefill and in every step.

    condition: name of the boolean that says whether the plain form is right; none if it always is,
    and then there is no other. biases: names of the
    values that say nothing but what the mask does. tables: cos and sin of every position, each
    (rows, R / 2), by the names of a call's. last: name of the index of each row's last token whose
    mask is 1; in the plain form that is the last one.
    """

    condition: str | None
    biases: Collection[str]
    tables: Mapping[str, NDArray[np.generic]]
    last: str

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        attending = [node for node in graph if self._has_two(node)]
        if not attending:
            return ir.passes.PassResult(model, False)
        values = {str(value.name): value for node in graph for value in node.outputs}
        gathered = _gathered(values.get(self.last))
        if self.condition is None:
            self._only_plain(graph, attending, gathered)
            return ir.passes.PassResult(model, True)
        condition = values[self.condition]
        inside: dict[ir.Value | None, None] = {}
        for node in attending:
            rotated = self._rotated(graph, node)
            inside |= dict.fromkeys(node.inputs[at] for at in (BIAS, QUERY_LENGTHS))
            inside |= dict.fromkeys([] if rotated is None else rotated.rotations[0].inputs[1:3])
            _attend_in_branches(graph, node, condition, rotated)
        own = [x for x in inside if x and all(user.graph is not graph for user, _ in x.uses())]
        _only_in_general(graph, own, condition, [_unused(value) for value in own])
        if gathered is not None:
            hidden, token = gathered
            _only_in_general(graph, [token], condition, _last_of(hidden))
        graph.sort()  # a branch may come before its condition
        return ir.passes.PassResult(model, True)

    def _only_plain(
        self,
        graph: ir.Graph,
        attending: Sequence[ir.Node],
        gathered: tuple[ir.Value, ir.Value] | None,
    ) -> None:
        """Puts the plain form in the place of every attention."""
        for node in attending:
            _replace(graph, node.outputs, [_plain_of(node, self._rotated(graph, node))])
        if gathered is not None:
            hidden, token = gathered
            _replace(graph, [token], _last_of(hidden))

    def _has_two(self, node: ir.Node) -> bool:
        """Whether a node attends with a bias that is nothing but padding."""
        if node.op_type != "GroupQueryAttention" or len(node.inputs) <= QUERY_LENGTHS:
            return False
        bias = node.inputs[BIAS]
        return bias is not None and bias.name in self.biases

    def _rotated(self, graph: ir.Graph, node: ir.Node) -> _Rotated | None:
        """What the plain form does itself, if it can: nothing else must use its values, and there
        must be a table of its angles."""
        q, k, split = (None if x is None else x.producer() for x in node.inputs[:3])
        if q is None or k is None or split is None or split.op_type != "Split":
            return None
        if q.op_type != "RotaryEmbedding" or k.op_type != q.op_type:
            return None
        alone = all(len(output.uses()) == 1 for x in (q, k, split) for output in x.outputs)
        angles = [value for value in q.inputs[1:3] if value and value.name in self.tables]
        whole = [q.inputs[0], k.inputs[0], node.inputs[2]] == list(split.outputs)
        if not alone or not whole or len(angles) != 2 or list(k.inputs[1:3]) != angles:
            return None
        cos, sin = (self._table(graph, str(value.name)) for value in angles)
        return _Rotated(split=split, rotations=(q, k), tables=(cos, sin))

    def _table(self, graph: ir.Graph, name: str) -> ir.Value:
        """The initializer of a table."""
        own = f"{name}/table"
        if own not in graph.initializers:
            tensor = ir.tensor(self.tables[name], name=own)
            graph.register_initializer(ir.val(own, const_value=tensor))
        return graph.initializers[own]


def _gathered(last: ir.Value | None) -> tuple[ir.Value, ir.Value] | None:
    """The hidden states, and those of the last tokens, which are gathered by their index."""
    waiting = [] if last is None else [last]
    while waiting:
        for node, _ in waiting.pop().uses():
            if node.op_type == "GatherND" and node.inputs[0] is not None:
                return node.inputs[0], node.outputs[0]
            waiting += node.outputs
    return None


def _attend_in_branches(
    graph: ir.Graph, node: ir.Node, condition: ir.Value, rotated: _Rotated | None
) -> None:
    """Puts an attention into both branches of an If, and into the general one what rotates for it
    where the plain form does that itself."""
    plain = _plain_of(node, rotated)
    before = [] if rotated is None else rotated.nodes
    moved = [*before, node]
    branch(graph, condition, [plain], moved, node.outputs, (PLAIN, GENERAL), str(node.name))


def _plain_of(node: ir.Node, rotated: _Rotated | None) -> ir.Node:
    """The plain form of an attention."""
    inputs, attributes = list(node.inputs), dict(node.attributes)
    inputs[BIAS] = inputs[QUERY_LENGTHS] = None
    if rotated is not None:
        inputs[:3] = [rotated.split.inputs[0], None, None]
        for at, table in zip(TABLES, rotated.tables, strict=True):
            inputs[at] = table
        attributes["do_rotary"] = ir.AttrInt64("do_rotary", 1)
        attributes["rotary_interleaved"] = ir.AttrInt64("rotary_interleaved", rotated.interleaved)
    return ir.Node(
        node.domain,
        node.op_type,
        inputs,
        attributes.values(),
        num_outputs=len(node.outputs),
        name=f"{node.name}/{PLAIN}",
    )


def _replace(graph: ir.Graph, values: Sequence[ir.Value], nodes: Sequence[ir.Node]) -> None:
    """Puts nodes, whose last outputs are those values, in the place of what computes these."""
    producer = values[0].producer()
    assert producer is not None
    graph.insert_before(producer, nodes)
    outputs = [output for node in nodes for output in node.outputs][-len(values) :]
    for value, output in zip(values, outputs, strict=True):
        output.name, output.type, output.shape = value.name, value.type, value.shape
        ir.convenience.replace_all_uses_with(value, output, replace_graph_outputs=True)
        value.name = f"{value.name}/{GENERAL}"


def _only_in_general(
    graph: ir.Graph, values: list[ir.Value], condition: ir.Value, plain: Sequence[ir.Node]
) -> None:
    """Moves what computes values, and nothing else, into the general branch of an If. plain: the
    nodes of the other, whose last ones give as many values."""
    name = "/".join(str(value.name) for value in values)
    branch(graph, condition, plain, only_for(graph, values), values, (PLAIN, GENERAL), name)


def _unused(value: ir.Value) -> ir.Node:
    """A value of the same type and axes that nothing looks at."""
    assert value.dtype is not None
    assert value.shape is not None
    sizes = [size if isinstance(size, int) else 1 for size in value.shape]
    zeros = np.zeros(sizes, value.dtype.numpy())
    return ir.node("Constant", [], {"value": ir.tensor(zeros)})


def _last_of(hidden: ir.Value) -> list[ir.Node]:
    """The last token of every row."""
    last = ir.node("Constant", [], {"value": ir.tensor(-1, dtype=ir.DataType.INT64)})
    return [last, ir.node("Gather", [hidden, last.outputs[0]], {"axis": 1})]

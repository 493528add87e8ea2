"""An ONNX graph read backwards: what a value is made of."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Self

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto


@dataclass(frozen=True)
class Graph:
    """One graph of a model. inside: the node whose branch it is, or none. outer: the graph that
    node is in, whose values this one may use."""

    proto: GraphProto
    inside: str | None = None
    outer: "Graph | None" = field(default=None, repr=False)

    @classmethod
    def every(cls, model: ModelProto) -> Iterator["Graph"]:
        """The main graph, and those of all branches and loops."""
        yield from cls(model.graph)._with_branches()

    def _with_branches(self) -> Iterator[Self]:
        yield self
        for node in self.nodes:
            for attribute in node.attribute:
                graphs = [attribute.g] if attribute.type == AttributeProto.GRAPH else []
                for proto in (*graphs, *attribute.graphs):
                    inner = type(self)(proto, f"{node.op_type} {node.name!r}", self)
                    yield from inner._with_branches()

    @property
    def nodes(self) -> list[NodeProto]:
        return list(self.proto.node)

    @cached_property
    def _producers(self) -> dict[str, NodeProto]:
        return {name: node for node in self.proto.node for name in node.output}

    @cached_property
    def _weights(self) -> dict[str, TensorProto]:
        return {tensor.name: tensor for tensor in self.proto.initializer}

    @cached_property
    def _declared(self) -> dict[str, ValueInfoProto]:
        every = (*self.proto.value_info, *self.proto.input, *self.proto.output)
        return {value.name: value for value in every}

    def producer(self, name: str) -> NodeProto | None:
        """The node that makes a value, here or further out; none for inputs and constants."""
        node = self._producers.get(name)
        return self.outer.producer(name) if node is None and self.outer is not None else node

    def comes_in(self, name: str) -> bool:
        """Whether a value is an input of the graph."""
        return name in {value.name for value in self.proto.input} - self._weights.keys()

    def goes_out(self, name: str) -> bool:
        """Whether a value is an output of the graph."""
        return name in {value.name for value in self.proto.output}

    def type_of(self, name: str) -> int | None:
        """A value's element type, or none where it is not stated."""
        if name in self._weights:
            return int(self._weights[name].data_type)
        if name in self._declared:
            return int(self._declared[name].type.tensor_type.elem_type) or None
        return None if self.outer is None else self.outer.type_of(name)

    def shape_of(self, name: str) -> list[int | str]:
        """A value's shape, with the names of its dynamic axes."""
        if name not in self._declared:
            return []
        axes = self._declared[name].type.tensor_type.shape.dim
        return [axis.dim_value if axis.HasField("dim_value") else axis.dim_param for axis in axes]

    def values_before(self, name: str, stop: frozenset[str] | set[str] = frozenset()) -> set[str]:
        """The value and all that it is computed from, not through the operators of `stop`, nor
        through a shape, which has none of the numbers."""
        seen: set[str] = set()
        waiting = [name]
        while waiting:
            value = waiting.pop()
            if value in seen:
                continue
            seen.add(value)
            node = self.producer(value)
            if node is not None and node.op_type not in stop and node.op_type != "Shape":
                waiting += [x for x in node.input if x]
        return seen

    def constants_before(self, name: str, stop: set[str]) -> Iterator[TensorProto]:
        """The constants among `values_before`, unless they lie in a file of their own."""
        for value in sorted(self.values_before(name, stop)):
            node = self.producer(value)
            tensors = [self._weights[value]] if value in self._weights else []
            if node is not None and node.op_type in ("Constant", "ConstantOfShape"):
                tensors += [a.t for a in node.attribute if a.type == AttributeProto.TENSOR]
            yield from (t for t in tensors if t.data_location != TensorProto.EXTERNAL)

"""One layer cut out of a decoder's ONNX model, from the hidden states that enter to those that
leave; and what lies before the first layer, or after the last."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import onnx

from rope_export.artifacts.contents import DATA, Contents
from rope_export.decoder.stamping import RESIDUAL
from rope_export.errors import InputError

ENTERING = "entering"
"""The input of a cut layer: the hidden states that enter it."""

ZEROS = "zeros"
"""An input of zeros: the second of two addends, where the first are the hidden states."""

SKIP_NORM = "SkipSimplifiedLayerNormalization"
"""An operator that norms the sum of two tensors, and has the sum as its fourth output."""

_RESIDUAL = re.compile(re.escape(RESIDUAL).replace(r"\{\}", r"\d+"))


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A layer, or what is around all of them, as a model of its own. inputs, outputs: their names,
    the hidden states first."""

    model: bytes
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class Cutter:
    """Cuts layers out of the model of an artifact. contents: its files. layers: how many it has."""

    def __init__(self, contents: Contents, layers: int) -> None:
        self.contents, self.layers = contents, layers
        self.model = onnx.load_from_string(contents.model)
        graph = self.model.graph
        self._producers = {name: node for node in graph.node for name in node.output if name}
        self._place = {id(node): at for at, node in enumerate(graph.node)}
        self._initializers = {tensor.name: tensor for tensor in graph.initializer}
        self._inputs = {x.name: x for x in graph.input}

    @property
    def size(self) -> int:
        """Bytes of the model."""
        return len(self.contents.model) + len(self.contents.data or b"")

    @cached_property
    def missing(self) -> str | None:
        """Why layers cannot be cut out, or nothing."""
        for at in range(self.layers + 1):
            name = RESIDUAL.format(at)
            if name not in self._producers:
                return f"the model has no value {name!r}, where one layer follows the other"
        return None

    def cut(self, layer: int, present: Iterable[str], more: Iterable[str] = ()) -> Cut:
        """present: the outputs of the model that are the layer's cache. more: values on the way
        that are to be outputs as well.

        Raises: InputError if the layer takes what another one computes.
        """
        outputs = (RESIDUAL.format(layer + 1), *present)
        return self._between(f"layer{layer}", RESIDUAL.format(layer), outputs, more)

    def before_layers(self, more: Iterable[str]) -> Cut:
        """From the model's inputs to the hidden states that enter the first layer.

        Raises: InputError if it takes what a layer computes.
        """
        return self._between("before_layers", None, (RESIDUAL.format(0),), more)

    def after_layers(self, output: str, more: Iterable[str]) -> Cut:
        """From the hidden states that leave the last layer to an output of the model.

        Raises: InputError if it takes what another layer computes.
        """
        return self._between("after_layers", RESIDUAL.format(self.layers), (output,), more)

    def _between(
        self, name: str, first: str | None, outputs: tuple[str, ...], more: Iterable[str]
    ) -> Cut:
        """first: the value of the hidden states that enter; none where tokens do."""
        nodes, names = self._before(outputs, first)
        model = onnx.ModelProto(ir_version=self.model.ir_version)
        model.opset_import.extend(self.model.opset_import)
        model.functions.extend(self.model.functions)
        graph = model.graph
        graph.name = name
        entering = []
        if first is not None:
            self._enter(graph, nodes, first)
            entering = [ENTERING, *([ZEROS] if any(ZEROS in x.input for x in nodes) else [])]
        graph.node.extend(nodes)
        graph.input.extend(
            onnx.helper.make_tensor_value_info(x, self._dtype(), ["batch", "sequence", None])
            for x in entering
        )
        graph.input.extend(info for taken, info in self._inputs.items() if taken in names)
        there = {value for node in graph.node for value in node.output}
        others = [x for x in dict.fromkeys(more) if x in there and x not in outputs]
        graph.output.extend(onnx.ValueInfoProto(name=value) for value in (*outputs, *others))
        for held, tensor in self._initializers.items():
            if held in names and held not in self._inputs:
                graph.initializer.append(self._inline(tensor))
        return Cut(
            model=model.SerializeToString(),
            inputs=tuple(x.name for x in graph.input),
            outputs=outputs,
        )

    def _before(
        self, outputs: Iterable[str], first: str | None
    ) -> tuple[list[onnx.NodeProto], set[str]]:
        """The nodes on the way from `first` to the outputs, and every name that they take."""
        nodes: dict[int, onnx.NodeProto] = {}
        names: set[str] = set()
        waiting = list(outputs)
        while waiting:
            name = waiting.pop()
            if name in names or not name:
                continue
            names.add(name)
            if name == first:
                continue
            if name not in outputs and _RESIDUAL.fullmatch(name):
                raise InputError(f"it takes {name}, which is of another layer")
            node = self._producers.get(name)
            if node is not None and first not in node.output:
                nodes[id(node)] = node
                waiting.extend(_taken(node))
            elif node is not None:  # what norms the sum that enters
                names.update(node.input[2:])
                nodes[id(node)] = node
        ordered = sorted(nodes.values(), key=lambda node: self._place[id(node)])
        return ordered, names

    def _enter(self, graph: onnx.GraphProto, nodes: list[onnx.NodeProto], first: str) -> None:
        """Has the hidden states come from the input."""
        for at, node in enumerate(nodes):
            if first in node.output:
                if node.op_type != SKIP_NORM:
                    raise InputError(f"{node.op_type} computes more than {first} at once")
                started = onnx.NodeProto()
                started.CopyFrom(node)
                started.input[0], started.input[1] = ENTERING, ZEROS
                nodes[at] = started
                return
        graph.node.append(onnx.helper.make_node("Identity", [ENTERING], [first]))

    def _dtype(self) -> int:
        """Of the hidden states: that of the caches."""
        name = next(x for x in self._inputs if x.startswith("past_key_values."))
        return int(self._inputs[name].type.tensor_type.elem_type)

    def _inline(self, tensor: onnx.TensorProto) -> onnx.TensorProto:
        """An initializer with its contents."""
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            return tensor
        facts = {entry.key: entry.value for entry in tensor.external_data}
        assert facts["location"] == DATA
        assert self.contents.data is not None
        start = int(facts.get("offset", 0))
        inline = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        inline.raw_data = self.contents.data[start : start + int(facts["length"])]
        return inline


def _taken(node: onnx.NodeProto) -> Iterator[str]:
    """Names that a node takes, also from within its subgraphs."""
    yield from node.input
    for attribute in node.attribute:
        graphs = [attribute.g] if attribute.HasField("g") else list(attribute.graphs)
        for graph in graphs:
            own = {x.name for x in (*graph.input, *graph.initializer)}
            own |= {name for inner in graph.node for name in inner.output}
            for inner in graph.node:
                yield from (name for name in _taken(inner) if name not in own)
            yield from (x.name for x in graph.output if x.name not in own)

"""An ONNX model whose values on the way are outputs as well."""

import json
from collections.abc import Iterable

import numpy as np
import onnx

from rope_export.errors import failures
from rope_export.exporter.taps import KEY, TapFacts
from rope_export.parity.decoder.running import RunLayer, layer_runner
from rope_export.parity.locate.suspect import Maker
from rope_export.runtimes.reference import evaluator_of

Arrays = dict[str, np.ndarray]
MOVING = {"Reshape", "Transpose", "Cast", "Identity", "Split", "Squeeze", "Unsqueeze"}
STANDS_IN = "onnxruntime"
"""The runtime of the ONNX model in the place of an engine."""


def taps_in(model: onnx.ModelProto) -> dict[str, TapFacts]:
    """The tensors that a model names in its metadata, and still has; none of a model that this
    package did not write."""
    entry = next((x.value for x in model.metadata_props if x.key == KEY), "{}")
    there = {name for node in model.graph.node for name in node.output}
    there |= {tensor.name for tensor in model.graph.initializer}
    facts = {
        tensor: TapFacts(value=value, axes=axes)
        for tensor, (value, axes) in json.loads(entry).items()
    }
    return {tensor: x for tensor, x in facts.items() if x.value in there}


def with_outputs(model: onnx.ModelProto, values: Iterable[str]) -> onnx.ModelProto:
    """A copy of the model that also gives these values."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    given = {value.name for value in copy.graph.output}
    known = {value.name: value for value in copy.graph.value_info}
    for name in dict.fromkeys(values):
        if name not in given:
            copy.graph.output.append(known.get(name, onnx.ValueInfoProto(name=name)))
    return copy


def maker_of(model: onnx.ModelProto, value: str) -> Maker | None:
    """The node that makes a value, looked at through those that move numbers."""
    from rope_export.onnx_graph import Graph

    graph = Graph(model.graph)
    weights = {tensor.name for tensor in model.graph.initializer}
    node = graph.producer(value)
    while node is not None and node.op_type in MOVING and graph.producer(node.input[0]) is not None:
        node = graph.producer(node.input[0])
    if node is None:
        return None
    taken = tuple(x for x in node.input if x)
    return Maker(
        operator=node.op_type,
        inputs=tuple(x for x in taken if x not in weights),
        weights=tuple(x for x in taken if x in weights),
    )


def opened(runtime: str, model: onnx.ModelProto, threads: int | None) -> tuple[str, RunLayer]:
    """The model on a runtime, or on the one that stands in where it runs no ONNX models; and which
    of them it is. threads: that a call may use; all cores unless given.

    Raises: RopeExportError if it cannot be opened.
    """
    start = evaluator if runtime == "reference" else layer_runner(runtime, threads)
    if start is None:
        runtime, start = STANDS_IN, layer_runner(STANDS_IN, threads)
    assert start is not None
    return runtime, start(model.SerializeToString())


def evaluator(model: bytes) -> RunLayer:
    """The model in onnx's reference evaluator, as the runtime of that name has it."""
    made = evaluator_of(onnx.load_from_string(model))
    names = [value.name for value in made.proto_.graph.output]

    def run(inputs: Arrays) -> Arrays:
        with failures("onnx's reference evaluator"):
            return dict(zip(names, made.run(names, inputs), strict=True))

    return run

"""Decoders whose ONNX model was changed after the export, with a manifest that goes with it."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from rope_export.artifacts.decoder import DecoderArtifact, save_decoder

Change = Callable[[onnx.GraphProto], None]


def planted(
    artifact: DecoderArtifact,
    path: Path,
    change: Change,
    *,
    source: Path | None = None,
    companions: Mapping[str, str] = {},
) -> DecoderArtifact:
    """The artifact with `change` made to its graph, at `path`.

    source: where it says that its source is, if not where it is. companions: texts by name.
    """
    model = onnx.load(artifact.path / "model.onnx")
    change(model.graph)

    def write(folder: Path) -> None:
        onnx.save(model, folder / "model.onnx")
        for name, text in companions.items():
            (folder / name).write_text(text)

    measured = {"source": str(source or artifact.evidence["source"])}
    return save_decoder(path, artifact.facts, write, measured)


def scaled(name: str, by: float, place: tuple = (...,)) -> Change:
    """A part of an initializer times a number."""

    def change(graph: onnx.GraphProto) -> None:
        tensor = next(x for x in graph.initializer if x.name == name)
        values = numpy_helper.to_array(tensor).copy()
        values[place] *= by
        tensor.CopyFrom(numpy_helper.from_array(values.astype(values.dtype), name))

    return change


def permuted(name: str, order: list[int], axis: int) -> Change:
    """Blocks of an initializer along an axis in another order; each has the same width."""

    def change(graph: onnx.GraphProto) -> None:
        tensor = next(x for x in graph.initializer if x.name == name)
        values = numpy_helper.to_array(tensor)
        blocks = np.split(values, len(order), axis)
        moved = np.ascontiguousarray(np.concatenate([blocks[at] for at in order], axis))
        tensor.CopyFrom(numpy_helper.from_array(moved, name))

    return change


def every_node(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes of a graph and of its branches."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from every_node(attribute.g)


def through(value: str, *nodes: onnx.NodeProto) -> Change:
    """Whoever takes `value` takes "planted" instead, which the nodes make of it."""

    def change(graph: onnx.GraphProto) -> None:
        for node in every_node(graph):
            for at, name in enumerate(node.input):
                if name == value:
                    node.input[at] = "planted"
        place = next((at + 1 for at, x in enumerate(graph.node) if value in x.output), 0)
        for at, node in enumerate(nodes):
            graph.node.insert(place + at, node)

    return change


def without_padding() -> Change:
    """The mask is taken as ones."""
    equal = helper.make_node("Equal", ["attention_mask"] * 2, ["same"])
    cast = helper.make_node("Cast", ["same"], ["planted"], to=onnx.TensorProto.INT64)
    return through("attention_mask", equal, cast)


def with_attribute(taken: str, name: str, value: float) -> Change:
    """Another value of an attribute of the node that takes `taken`."""

    def change(graph: onnx.GraphProto) -> None:
        for node in graph.node:
            for attribute in node.attribute:
                if taken in node.input and attribute.name == name:
                    attribute.f = value
                    return
        raise AssertionError(f"no node with {name} takes {taken}")

    return change

"""Whole numbers in a model's file that could be a limit on cache slots."""

import math
from collections.abc import Iterator

import numpy as np

from rope_export.artifacts.folder import Folder

SHORTEST = 1_500
"""Limits below are passed by the regular cases, whose longest past is 2,000."""

LARGEST = 2**31 - 2
"""Numbers above stand for "no limit", as the ends of Slice do."""

SHAPES = {"Reshape", "Expand", "Split", "ConstantOfShape", "Tile"}
"""Operators whose second input is a shape, or whose only one is."""

FEW = 64
"""Elements of a constant that is looked at; limits are single numbers."""


def slot_limits(artifact: Folder) -> frozenset[int]:
    """The size of every integer constant and attribute of the model that could be one."""
    return slot_limits_of(artifact.read().model)


def slot_limits_of(model: bytes) -> frozenset[int]:
    """The same of a model's bytes."""
    import onnx

    graph = onnx.load_model_from_string(model).graph
    shapes = {
        name
        for node in graph.node
        if node.op_type in SHAPES
        for name in (node.input[1:] if node.op_type != "ConstantOfShape" else node.input)
    }
    elsewhere = {
        name for node in graph.node if node.op_type not in SHAPES for name in node.input
    } | {node.input[0] for node in graph.node if node.op_type in SHAPES and node.input}
    only_shapes = shapes - elsewhere
    numbers: set[int] = set()
    for name, tensor in _constants(graph):
        if name not in only_shapes and 0 < math.prod(tensor.dims) <= FEW:
            numbers.update(_whole(onnx.numpy_helper.to_array(tensor)))
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type != "Constant":
                numbers.update(map(abs, (attribute.i, *attribute.ints)))
    return frozenset(int(x) for x in numbers if SHORTEST < x <= LARGEST)


def _constants(graph: "onnx.GraphProto") -> Iterator[tuple[str, "onnx.TensorProto"]]:  # type: ignore[name-defined]  # noqa: F821
    import onnx

    for tensor in graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            yield tensor.name, tensor
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.HasField("t"):
                yield node.output[0], attribute.t
            elif node.op_type == "Constant" and attribute.name in ("value_int", "value_ints"):
                numbers = np.array([attribute.i, *attribute.ints], np.int64)
                yield node.output[0], onnx.numpy_helper.from_array(numbers)


def _whole(values: np.ndarray) -> Iterator[int]:
    """Sizes of the integers in a constant."""
    if np.issubdtype(values.dtype, np.integer):
        yield from (abs(int(x)) for x in values.ravel())

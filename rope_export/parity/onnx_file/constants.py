"""The constants of an ONNX file: what lies in it or beside it, and what is laid out anew."""

from collections.abc import Callable
from typing import Any

import numpy as np

from rope_export.errors import ArtifactError
from rope_export.parity.onnx_file.file import OnnxFile

LAID_OUT = ("Identity", "Reshape", "Transpose")
"""Operators whose result has the numbers of their first input."""


class Constants:
    """Reads the constants of a file, each when it is asked for."""

    def __init__(self, file: OnnxFile) -> None:
        self._file = file
        self._protos = {proto.name: proto for proto in file.graph.initializer}
        self._nodes: dict[str, Any] = {}
        for node in file.graph.node:
            value = next((x for x in node.attribute if x.name == "value"), None)
            if node.op_type == "Constant" and value is not None:
                self._protos[node.output[0]] = value.t
            elif node.op_type in LAID_OUT and node.output:
                self._nodes[node.output[0]] = node

    def has(self, name: str) -> bool:
        """Whether it is a constant."""
        node = self._nodes.get(name)
        return name in self._protos or (node is not None and all(map(self.has, node.input)))

    def origin(self, name: str) -> str:
        """The tensor that a constant is laid out of."""
        node = self._nodes.get(name)
        return name if node is None else self.origin(node.input[0])

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a constant."""
        return tuple(self._protos[name].dims) if name in self._protos else self.read(name).shape

    def read(self, name: str) -> np.ndarray:
        """The numbers of a constant; those of 4 bits are one to an element.

        Raises: ArtifactError for one of which the file has too few.
        """
        from onnx import numpy_helper

        node = self._nodes.get(name)
        if node is None:
            try:
                return numpy_helper.to_array(_inside(self._protos[name], self._file))
            except ValueError as error:
                raise ArtifactError(
                    f"{self._file.path}: {name} cannot be read ({error})."
                ) from error
        value = self.read(node.input[0])
        if node.op_type == "Reshape":
            sizes = self.read(node.input[1]).tolist()
            return value.reshape([y or value.shape[x] for x, y in enumerate(sizes)])
        if node.op_type == "Transpose":
            return value.transpose(next((x.ints for x in node.attribute), None))
        return value

    def reader(self, name: str) -> Callable[[], np.ndarray]:
        """What reads a constant."""
        return lambda: self.read(name)


def _inside(proto: Any, file: OnnxFile) -> Any:
    """The tensor with its numbers, which may lie in a file beside the model."""
    if not proto.external_data:
        return proto
    entries = {x.key: x.value for x in proto.external_data}
    data, offset = file.data[entries["location"]], int(entries.get("offset", 0))
    length = int(entries.get("length", len(data) - offset))
    inside = type(proto)()
    inside.CopyFrom(proto)
    del inside.external_data[:]
    inside.data_location = 0
    inside.raw_data = bytes(data[offset : offset + length])
    return inside

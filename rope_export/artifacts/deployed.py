"""The weights in an artifact's ONNX file, in the orientation of the source."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rope_export.artifacts.contents import Contents
from rope_export.artifacts.folder import Folder
from rope_export.errors import ArtifactError, extra
from rope_export.quantization import Packed, unpack

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto
    from torch import Tensor


def read_model(artifact: Folder) -> "ModelProto":
    """The ONNX model with all its weights inside, from the files that its manifest names.

    Raises: ArtifactError if it cannot be read.
    """
    with extra("export", "reading an artifact's weights"):
        import onnx

        from rope_export.onnx_graph import Graph
    files = artifact.read()
    try:
        model = onnx.load_model_from_string(files.model)
    except Exception as error:  # protobuf's own kind of error is not public
        raise ArtifactError(f"{artifact.model}: cannot be read ({error}).") from error
    if files.data is None:
        return model
    for graph in Graph.every(model):
        attributes = [attribute for node in graph.nodes for attribute in node.attribute]
        inside = [a.t for a in attributes if a.type == onnx.AttributeProto.TENSOR]
        for tensor in (*graph.proto.initializer, *inside):
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                _take_in(tensor, files, artifact.model)
                tensor.data_location = onnx.TensorProto.DEFAULT
                tensor.ClearField("external_data")
    files.check()
    return model


def _take_in(tensor: "TensorProto", files: Contents, model: Path) -> None:
    """Put a tensor's values into it that lie in the model's data file."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    assert files.data is not None
    try:
        start = int(entries.get("offset", 0))
        end = start + int(entries["length"]) if "length" in entries else len(files.data)
    except ValueError as error:
        raise ArtifactError(f"{model}: gives {tensor.name!r} no valid place ({error}).") from error
    if not 0 <= start <= end <= len(files.data):
        raise ArtifactError(f"{model}: {tensor.name!r} lies outside of its data file.")
    tensor.raw_data = files.data[start:end]


class FileWeights:
    """The weights of a model's file by their names in the manifest, each read when it is asked
    for."""

    def __init__(self, artifact: Folder) -> None:
        """Raises: ArtifactError if the model cannot be read."""
        with extra("export", "reading an artifact's weights"):
            import onnx

        self.facts, self.quantization = artifact.manifest.weights, artifact.manifest.quantization
        self._path, self._files = artifact.model, artifact.read()
        try:
            model = onnx.load_model_from_string(self._files.model)
        except Exception as error:  # protobuf's own kind of error is not public
            raise ArtifactError(f"{artifact.model}: cannot be read ({error}).") from error
        self._initializers = {tensor.name: tensor for tensor in model.graph.initializer}

    def tensor(self, name: str) -> "Tensor":
        """One weight in the orientation of the source, dequantized if it is quantized.

        Raises: ArtifactError if an initializer that the manifest names is missing or unreadable.
        """
        from rope_export.arrays import to_torch

        facts = self.facts[name]
        own = slice(None) if facts.columns is None else slice(*facts.columns)
        if self.quantization is not None and facts.scales is not None:
            stored = Packed(
                packed=self._array(facts.initializer)[own],
                scales=self._array(facts.scales)[own],
                zeros=None if facts.zero_points is None else self._array(facts.zero_points),
                offsets=None if facts.offsets is None else self._array(facts.offsets),
            )
            assert facts.inputs is not None  # as every quantized weight's
            return to_torch(unpack(stored, self.quantization, facts.inputs))
        array = self._array(facts.initializer)
        value = to_torch((array if facts.columns is None else array[:, own]).copy())
        return value.t().contiguous() if facts.transposed else value

    def _array(self, name: str) -> np.ndarray:
        from onnx import TensorProto, numpy_helper

        if name not in self._initializers:
            raise ArtifactError(f"{self._path}: has no initializer {name!r}.")
        tensor = self._initializers[name]
        if tensor.data_location == TensorProto.EXTERNAL:
            outside, tensor = tensor, TensorProto()
            tensor.CopyFrom(outside)
            _take_in(tensor, self._files, self._path)
            tensor.data_location = TensorProto.DEFAULT
            tensor.ClearField("external_data")
            self._files.check()
        return numpy_helper.to_array(tensor)


def file_weights(artifact: Folder) -> "dict[str, Tensor]":
    """Every weight of the file, by its name in the manifest.

    Raises: ArtifactError if an initializer that the manifest names is missing or unreadable.
    """
    weights = FileWeights(artifact)
    return {name: weights.tensor(name) for name in weights.facts}

"""The weights in an artifact's ONNX file, in the orientation of the source."""

from typing import TYPE_CHECKING

import numpy as np

from rope_export.artifact import Artifact
from rope_export.errors import ArtifactError, extra
from rope_export.quantized import Packed, Quantization, unpack

if TYPE_CHECKING:
    from torch import Tensor


def file_weights(artifact: Artifact) -> "dict[str, Tensor]":
    """Each tensor of the layer as the file has it, by its name in the spec.

    Raises: ArtifactError if an initializer that the manifest names is missing or unreadable.
    """
    with extra("export", "reading an artifact's weights"):
        import onnx
        from onnx import numpy_helper
    from rope_export.runtimes import to_torch

    try:
        graph = onnx.load(str(artifact.model)).graph
    except Exception as error:  # protobuf, onnx and the file system each have their own kinds
        raise ArtifactError(f"{artifact.model}: cannot be read ({error}).") from error
    initializers = {tensor.name: tensor for tensor in graph.initializer}

    def array(name: str) -> np.ndarray:
        if name not in initializers:
            raise ArtifactError(f"{artifact.model}: has no initializer {name!r}.")
        return numpy_helper.to_array(initializers[name])

    how = Quantization.from_json(artifact.manifest.quantization)
    weights = {}
    for name, facts in artifact.manifest.weights.items():
        if how is not None and "scales" in facts:
            zeros = array(facts["zero_points"]) if "zero_points" in facts else None
            stored = Packed(
                packed=array(facts["initializer"]), scales=array(facts["scales"]), zeros=zeros
            )
            weights[name] = to_torch(unpack(stored, how, facts["inputs"]))
            continue
        value = to_torch(array(facts["initializer"]).copy())
        weights[name] = value.t().contiguous() if facts["transposed"] else value
    return weights

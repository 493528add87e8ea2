"""The least that one call of a decoder must do, read from its ONNX model."""

import math
from collections.abc import Iterator

from rope_export.arrays import numpy_dtype
from rope_export.artifacts.decoder import DecoderArtifact
from rope_export.bench.roofline import Work, slots_read, visible_pairs
from rope_export.bench.shapes import Shape
from rope_export.errors import extra
from rope_export.interface.decoder import layer_cache
from rope_export.spec import AttentionSpec

with extra("export", "reading the model"):
    import onnx
    from onnx import ModelProto, NodeProto, TensorProto, helper

LOOK_UPS = ("Gather", "GatherBlockQuantized")
"""Operators that read some rows of a weight and not all."""
EXPERTS = ("MoE", "QMoE")
"""Operators that read some of their weights, by what the tokens are; so do branches and loops with
products in them."""
PRODUCTS = ("MatMul", "Gemm", "MatMulNBits")


class DecoderWork:
    """Weights and products of a decoder.

    bytes: of the weights that every call reads whole. products: inputs times outputs of each matrix
    product with a weight; the head's, which has as many outputs as there are words, apart. chosen:
    its weights hold experts, of which a call reads some, so that what it reads is not known.
    """

    def __init__(self, artifact: DecoderArtifact) -> None:
        self.facts = artifact.facts
        self.specs = [AttentionSpec.from_json(spec) for spec in self.facts.specs]
        model = onnx.load(artifact.path / "model.onnx", load_external_data=False)
        tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        read = {
            name
            for node in model.graph.node
            for name in node.input
            if name in tensors and node.op_type not in LOOK_UPS
        }
        self.bytes = sum(_bytes(tensors[name]) for name in read)
        self.chosen = any(_chooses(node, tensors) for node in model.graph.node)
        sizes = list(_products(model, tensors))
        self.products = sum(k * n for k, n in sizes if n != self.facts.vocabulary)
        self.head = sum(k * n for k, n in sizes if n == self.facts.vocabulary)

    def __call__(self, shape: Shape) -> Work | None:
        """The work of one call; none where it is not known."""
        if self.chosen:
            return None
        tokens = shape.batch * shape.sequence
        told = shape.batch if self.facts.logits == "last" else tokens
        read, flops = self.bytes, 2 * (tokens * self.products + told * self.head)
        for at in self.facts.layers:
            if at is None:
                continue
            spec = self.specs[at]
            entry = numpy_dtype(self.facts.dtype).itemsize * sum(
                math.prod(x for x in axes if isinstance(x, int))
                for axes in layer_cache(spec).values()
            )
            read += shape.batch * slots_read(spec, shape) * entry
            pairs = shape.batch * spec.heads * visible_pairs(spec, shape)
            flops += 2 * pairs * (spec.head_dim + spec.value_head_dim)
        return Work(bytes=read, flops=flops)


def _products(model: ModelProto, tensors: dict[str, TensorProto]) -> Iterator[tuple[int, int]]:
    """Inputs and outputs of each matrix product with a weight."""
    for node in model.graph.node:
        if node.op_type not in PRODUCTS or node.input[1] not in tensors:
            continue
        if node.op_type == "MatMulNBits":
            yield _attribute(node, "K"), _attribute(node, "N")
            continue
        sizes = tuple(tensors[node.input[1]].dims[-2:])
        yield sizes[::-1] if node.op_type == "Gemm" and _attribute(node, "transB") else sizes


def _attribute(node: NodeProto, name: str) -> int:
    values = [helper.get_attribute_value(x) for x in node.attribute if x.name == name]
    return int(values[0]) if values else 0


def _bytes(tensor: TensorProto) -> int:
    width = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    packed = 2 if tensor.data_type in (TensorProto.INT4, TensorProto.UINT4) else 1
    return math.prod(tensor.dims) * width // packed


def _chooses(node: NodeProto, tensors: dict[str, TensorProto]) -> bool:
    """Whether an operator takes whole matrices out of a stack of them."""
    looked_up = tensors.get(node.input[0]) if node.op_type in LOOK_UPS else None
    if node.op_type in EXPERTS or (looked_up is not None and len(looked_up.dims) > 2):
        return True
    graphs = [x.g for x in node.attribute if x.HasField("g")]
    inside = (inner for graph in graphs for inner in graph.node)
    return any(inner.op_type in PRODUCTS or _chooses(inner, tensors) for inner in inside)

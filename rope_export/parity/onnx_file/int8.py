"""Files whose kernels round what they multiply with to int8, and the same without it."""

from dataclasses import replace
from typing import Any

from rope_export.parity.onnx_file.file import OnnxFile, attribute
from rope_export.parity.onnx_file.quantized import ROUNDS_TO_INT8

FLOAT32 = 1
"""The accuracy level at which nothing is rounded beyond float32."""

EXACT = ("session.qdq_matmulnbits_accuracy_level", str(FLOAT32))
"""The entry of a session's config by which onnxruntime does not round what it multiplies with
weights of DequantizeLinear; without, it rounds it to int8."""


def rounds_to_int8(file: OnnxFile) -> bool:
    """Whether onnxruntime, left to itself, rounds what is multiplied with some weight to int8."""
    return any(_rounds(node) for node in file.graph.node)


def rounds_after_dequantizing(file: OnnxFile) -> bool:
    """Whether onnxruntime, left to itself, does so where weights are DequantizeLinear's."""
    return any(node.op_type == "DequantizeLinear" and _rounds(node) for node in file.graph.node)


def without_rounding(file: OnnxFile) -> OnnxFile:
    """The file with the accuracy level of each of its products at float32; its weights, and all
    else, are what they were."""
    import onnx

    proto = onnx.load_model_from_string(file.model)
    changed = False
    for node in proto.graph.node:
        if node.op_type == "MatMulNBits" and _rounds(node):
            kept = [x for x in node.attribute if x.name != "accuracy_level"]
            del node.attribute[:]
            node.attribute.extend([*kept, onnx.helper.make_attribute("accuracy_level", FLOAT32)])
            changed = True
    return replace(file, model=proto.SerializeToString()) if changed else file


def _rounds(node: Any) -> bool:
    if node.op_type == "MatMulNBits":
        return int(attribute(node, "accuracy_level", 0)) == ROUNDS_TO_INT8
    return node.op_type == "DequantizeLinear" and int(attribute(node, "block_size", 0)) > 0

"""A small ONNX model with a decoder's names, whose answers can be told by looking.

Two layers' caches of (batch, 2, slots, 4), keys of E[id] and values of -E[id], E being 16 rows of
8 whole numbers. The logits of a token are E[id] + position + (the sum of the first layer's keys
that the mask allows): with one new token in each call, those of a causal decoder.
"""

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from rope_export.interface import Interface, TensorType

EMBEDDING = np.arange(128, dtype=np.float32).reshape(16, 8) % 11


def decoder_model(interface: Interface) -> ModelProto:
    """interface: as `decoder_interface` makes it, with the slots on axis 2."""
    node = helper.make_node
    constants = {"E": EMBEDDING, "heads": np.array([0, 0, 2, 4]), "flat": np.array([0, 1, 8])}
    constants |= {"after": np.array([2]), "around": np.array([1, 3]), "slots": np.array([2])}
    nodes = [
        node("Gather", ["E", "input_ids"], ["x"]),
        node("Reshape", ["x", "heads"], ["by token"]),
        node("Transpose", ["by token"], ["new key"], perm=[0, 2, 1, 3]),
        node("Neg", ["new key"], ["new value"]),
        node("Cast", ["position_ids"], ["position"], to=TensorProto.FLOAT),
        node("Unsqueeze", ["position", "after"], ["positions"]),
        node("Cast", ["attention_mask"], ["numbers"], to=TensorProto.FLOAT),
        node("Unsqueeze", ["numbers", "around"], ["mask"]),
    ]
    for pair in interface.caches:
        new = "new " + pair.input.rpartition(".")[2]
        if interface.lengths is None:
            nodes.append(node("Concat", [pair.input, new], [pair.output], axis=pair.axis))
        else:
            inputs = [pair.input, new, interface.lengths]
            nodes.append(node("TensorScatter", inputs, [pair.output], axis=pair.axis))
    nodes += [
        node("Mul", [interface.caches[0].output, "mask"], ["allowed"]),
        node("ReduceSum", ["allowed", "slots"], ["sum"], keepdims=0),
        node("Reshape", ["sum", "flat"], ["context"]),
        node("Add", ["x", "positions"], ["token"]),
        node("Add", ["token", "context"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "decoder",
        [_value(tensor) for tensor in interface.inputs],
        [_value(tensor) for tensor in interface.outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=10)


def _value(tensor: TensorType) -> object:
    element = TensorProto.INT64 if tensor.dtype == "int64" else TensorProto.FLOAT
    return helper.make_tensor_value_info(tensor.name, element, list(tensor.shape))

"""Quantized weights of files that others made are what onnxruntime computes with."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from rope_export.errors import UnavailableError
from rope_export.parity.onnx_file.deployed import APART, RUINED, steps_apart, worst_channel
from rope_export.parity.onnx_file.file import OnnxFile
from rope_export.parity.onnx_file.int8 import rounds_to_int8, without_rounding
from rope_export.parity.onnx_file.tensors import Tensor, tensors_in

ROWS, INPUTS, BLOCK = 6, 40, 16
BLOCKS = -(-INPUTS // BLOCK)
Arrays = dict[str, np.ndarray]


def drawn(shape: Sequence[int], dtype: type = np.uint8, top: int = 256) -> np.ndarray:
    stream = np.random.default_rng([*shape, top])
    if dtype is np.float32:
        return stream.uniform(0.01, 0.1, shape).astype(np.float32)
    return stream.integers(0, top, shape).astype(dtype)


def written(
    path: Path, nodes: list[Any], weights: Arrays, given: tuple[int, Any], **types: int
) -> OnnxFile:
    """A file whose input "x" and output "y" go through `nodes`. types: of tensors of 4 bits."""
    initializers = [
        helper.make_tensor(name, types[name], x.shape, x.ravel().tolist())
        if name in types
        else numpy_helper.from_array(x, name)
        for name, x in weights.items()
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", *given)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        initializers,
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.save(model, str(path / "m.onnx"))
    return OnnxFile.read(path / "m.onnx")


def computed(file: OnnxFile, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(file.model, providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(None, {"x": x})[0]
    return result


def weight_of(file: OnnxFile) -> Tensor:
    (tensor,) = [x for x in tensors_in(file, 0) if x.quantized is not None]
    return tensor


def product(path: Path, bits: int, zeros: str, **attributes: int) -> OnnxFile:
    """A MatMulNBits. zeros: "", "whole" or "float"."""
    weights = {
        "packed": drawn((ROWS, BLOCKS, BLOCK * bits // 8)),
        "scales": drawn((ROWS * BLOCKS,), np.float32),
    }
    if zeros == "whole":
        weights["zeros"] = drawn((ROWS * -(-BLOCKS * bits // 8),))
    if zeros == "float":
        weights["zeros"] = 100 * drawn((ROWS, BLOCKS), np.float32)
    facts = {"K": INPUTS, "N": ROWS, "bits": bits, "block_size": BLOCK} | attributes
    node = helper.make_node(
        "MatMulNBits", ["x", *weights], ["y"], "layers.3/q_proj", domain="com.microsoft", **facts
    )
    return written(path, [node], weights, (TensorProto.FLOAT, (None, INPUTS)))


@pytest.mark.parametrize("zeros", ["", "whole", "float"])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_product_with_blocks(tmp_path: Path, bits: int, zeros: str) -> None:
    if (bits, zeros) == (8, "float"):
        pytest.skip("onnxruntime takes float zeros with 4 bits alone")
    file = product(tmp_path, bits, zeros)
    expected = computed(file, np.eye(INPUTS, dtype=np.float32)).T
    tensor = weight_of(file)
    assert tensor.shape == (ROWS, INPUTS)
    np.testing.assert_allclose(tensor.laid(), expected, rtol=0, atol=1e-6)
    assert "q_proj" in tensor.words


@pytest.mark.parametrize(("bits", "zeros"), [(4, True), (4, False), (8, True)])
def test_rows_that_are_looked_up(tmp_path: Path, bits: int, zeros: bool) -> None:
    width = 2 * BLOCK
    weights = {
        "packed": drawn((ROWS, width * bits // 8)),
        "scales": drawn((ROWS, 2), np.float32),
    }
    if zeros:
        weights["zeros"] = drawn((ROWS, 2 * bits // 8))
    facts = {"block_size": BLOCK, "gather_axis": 0, "quantize_axis": 1, "bits": bits}
    inputs = ["packed", "x", "scales", *(["zeros"] if zeros else [])]
    node = helper.make_node(
        "GatherBlockQuantized", inputs, ["y"], "embed_tokens", domain="com.microsoft", **facts
    )
    file = written(tmp_path, [node], weights, (TensorProto.INT64, (None,)))
    tensor = weight_of(file)
    np.testing.assert_array_equal(tensor.laid(), computed(file, np.arange(ROWS)))


@pytest.mark.parametrize(
    ("axis", "block", "scales", "dtype"),
    [
        (0, BLOCK, (3, ROWS), TensorProto.INT4),
        (0, BLOCK, (3, ROWS), TensorProto.UINT4),
        (1, 0, (ROWS,), TensorProto.INT8),
        (0, 0, (), TensorProto.UINT8),
    ],
    ids=["int4 by blocks", "uint4 by blocks", "int8 by columns", "one scale"],
)
def test_a_weight_that_is_dequantized_before_its_product(
    tmp_path: Path, axis: int, block: int, scales: tuple[int, ...], dtype: int
) -> None:
    low, top = (0, 16) if dtype == TensorProto.UINT4 else (-8, 8)
    weights = {
        "levels": drawn((3 * BLOCK, ROWS), np.int64, top - low) + low,
        "scales": drawn(scales, np.float32),
        "zeros": drawn(scales, np.int64, 4),
    }
    levels = weights | {"levels": np.abs(weights["levels"])} if dtype == 2 else weights
    nodes = [
        helper.make_node("DequantizeLinear", list(levels), ["w"], axis=axis, block_size=block),
        helper.make_node("MatMul", ["x", "w"], ["y"], "layers.0/o_proj/MatMul"),
    ]
    given = (TensorProto.FLOAT, (None, 3 * BLOCK))
    file = written(tmp_path, nodes, levels, given, levels=dtype, zeros=dtype)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(file.model, options)
    expected = session.run(None, {"x": np.eye(3 * BLOCK, dtype=np.float32)})[0].T
    tensor = weight_of(file)
    assert tensor.shape == (ROWS, 3 * BLOCK)
    np.testing.assert_array_equal(tensor.laid(), expected)
    assert "o_proj" in tensor.words
    assert np.all(tensor.steps() > 0)


def test_a_file_that_rounds_to_int8_is_run_without_it(tmp_path: Path) -> None:
    file = product(tmp_path, 4, "", accuracy_level=4)
    assert rounds_to_int8(file)
    exact = without_rounding(file)
    weight, x = weight_of(file).laid(), np.random.default_rng(0).normal(size=(5, INPUTS))
    x = x.astype(np.float32)
    expected = x @ weight.T
    np.testing.assert_allclose(computed(exact, x), expected, atol=1e-5)
    assert np.abs(computed(file, x) - expected).max() > 1e-4
    assert not rounds_to_int8(product(tmp_path, 4, ""))


@pytest.mark.parametrize(
    ("attributes", "inputs", "message"),
    [
        ({"bits": 2}, 3, "MatMulNBits of 2 bits is not read"),
        ({"bits": 4}, 5, "MatMulNBits with g_idx"),
    ],
)
def test_what_is_not_read_is_refused(
    tmp_path: Path, attributes: dict[str, int], inputs: int, message: str
) -> None:
    file = product(tmp_path, 4, "whole")
    node = file.graph.node[0]
    kept = [x for x in node.attribute if x.name not in attributes]
    del node.attribute[:]
    node.attribute.extend([*kept, *(helper.make_attribute(k, v) for k, v in attributes.items())])
    node.input.extend(["packed"] * (inputs - len(node.input)))
    with pytest.raises(UnavailableError, match=message):
        list(tensors_in(file, 0))


@pytest.mark.parametrize("at", [1, 2], ids=["levels", "scales"])
def test_a_part_of_a_weight_that_is_computed_is_refused(tmp_path: Path, at: int) -> None:
    file = product(tmp_path, 4, "")
    (node,) = file.graph.node
    node.input[at] = "computed"
    file.graph.node.insert(0, helper.make_node("Abs", ["x"], ["computed"]))
    with pytest.raises(UnavailableError, match="computed is computed, and not read"):
        list(tensors_in(file, 0))


@pytest.mark.parametrize(
    ("steps", "expected"),
    [([1.0, 1.0], 0.5), ([1.0, 0.0], 0.5), ([0.25, 0.0], 2.0), ([0.0, 0.0], np.inf)],
    ids=["both", "one level", "small steps", "no steps"],
)
def test_a_block_of_one_level_is_measured_too(steps: list[float], expected: float) -> None:
    """Or a file whose scales are 0 would hold the source's weights."""
    assert steps_apart(np.array([0.5, -0.5]), np.array(steps)) == expected
    assert steps_apart(np.zeros(2), np.array(steps)) == 0


def ruined(exact: np.ndarray, how: str) -> np.ndarray:
    """A weight of four bits by the largest number of each row, or what became of one of its
    channels."""
    step = np.abs(exact).max(1, keepdims=True) / 7
    value: np.ndarray = np.round(exact / step) * step
    if how == "row of zeros":
        value[70] = 0
    elif how == "another row":
        value[70] = value[3]
    elif how == "another column":
        value[:, 9] = value[:, 8]
    elif how == "clipped":
        value = np.clip(value, -3, 3)
    return value


@pytest.mark.parametrize(
    "how", ["sound", "clipped", "row of zeros", "another row", "another column"]
)
def test_one_ruined_channel_of_a_large_weight_is_seen(how: str) -> None:
    exact = np.random.default_rng(0).normal(size=(256, 192))
    exact[:, 5] *= 3  # an outlier, which clipping takes furthest
    steps = np.broadcast_to(np.abs(exact).max(1, keepdims=True) / 7, exact.shape)
    difference = ruined(exact, how) - exact
    assert steps_apart(difference, steps) < APART
    assert (worst_channel(difference, exact, steps) > RUINED) == (how not in ("sound", "clipped"))

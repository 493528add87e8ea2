"""ONNX forms that TensorRT parses and computes otherwise, or cannot build: refused by the node."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from rope_export.engines.network import refuse
from rope_export.errors import InputError

HALF, FLOAT, INT = TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.INT64
HEADS = ["batch", 2, "sequence", 16]
CACHE = ["batch", 2, "past", 16]
Model = Callable[[], onnx.ModelProto]


def model(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[int, list[Any]]],
    outputs: dict[str, int],
    constants: dict[str, np.ndarray] | None = None,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "attention",
        [helper.make_tensor_value_info(name, *form) for name, form in inputs.items()],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
    )
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


QKV = {"q": (HALF, HEADS), "k": (HALF, HEADS), "v": (HALF, HEADS)}


def attention(*more: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node("Attention", ["q", "k", "v", *more], ["y"], "scores", **attributes)


def plain(*more: str, inputs: dict[str, Any] | None = None, **attributes: Any) -> onnx.ModelProto:
    return model([attention(*more, **attributes)], QKV | (inputs or {}), {"y": HALF})


def masked(lowest: float, kind: int = HALF, twice: bool = False) -> onnx.ModelProto:
    """Attention under a mask that is 0 or `lowest`; with padding masked likewise if twice."""
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    nodes = [helper.make_node("Where", ["allowed", "zero", "lowest"], ["bias"], "causal")]
    if twice:
        nodes.append(helper.make_node("Add", ["bias", "padding"], ["mask"], "both"))
    nodes.append(attention("mask" if twice else "bias"))
    inputs = {name: (kind, form) for name, (_, form) in QKV.items()}
    inputs["allowed"] = (TensorProto.BOOL, [1, 1, "sequence", "sequence"])
    if twice:
        inputs["padding"] = (kind, ["batch", 1, 1, "sequence"])
    constants = {"zero": np.zeros((), dtype), "lowest": np.array(lowest, dtype)}
    return model(nodes, inputs, {"y": kind}, constants)


def in_products(lowest: float) -> onnx.ModelProto:
    """The same mask, added to a matrix product before a softmax."""
    nodes = [
        helper.make_node("MatMul", ["q", "k"], ["products"]),
        helper.make_node("Where", ["allowed", "zero", "lowest"], ["bias"]),
        helper.make_node("Add", ["products", "bias"], ["scores"]),
        helper.make_node("Cast", ["scores"], ["wide"], to=FLOAT),
        helper.make_node("Softmax", ["wide"], ["y"], "weights", axis=-1),
    ]
    inputs = {"q": (HALF, HEADS), "k": (HALF, ["batch", 2, 16, "total"])}
    inputs["allowed"] = (TensorProto.BOOL, [1, 1, "sequence", "total"])
    constants = {"zero": np.zeros((), np.float16), "lowest": np.array(lowest, np.float16)}
    return model(nodes, inputs, {"y": FLOAT}, constants)


def grown(*more: str, **attributes: Any) -> onnx.ModelProto:
    """Attention on a cache that is put together outside it, the keys being turned afterwards."""
    nodes = [
        helper.make_node("Concat", ["past_key", "k"], ["keys"], "append_key", axis=2),
        helper.make_node("Neg", ["keys"], ["turned"]),
        helper.make_node("Concat", ["past_value", "v"], ["values"], "append", axis=-2),
        helper.make_node("Attention", ["q", "turned", "values"], ["y"], "scores", **attributes),
    ]
    inputs = QKV | {"past_key": (HALF, CACHE), "past_value": (HALF, CACHE)}
    return model(nodes, inputs, {"y": HALF})


def scattered(shape: list[Any], axis: int = -2, out: str = "cache_out") -> onnx.ModelProto:
    new = [*shape[:-2], "sequence", shape[-1]]
    nodes = [
        helper.make_node("TensorScatter", ["cache", "new", "lengths"], [out], "write", axis=axis),
        helper.make_node("Identity", [out], ["y"]),
    ]
    inputs = {"cache": (HALF, shape), "new": (HALF, new), "lengths": (INT, ["batch"])}
    return model(nodes, inputs, {"y": HALF} | ({out: HALF} if out == "cache_out" else {}))


def turned(narrow: int | None = None, product: bool = False) -> onnx.ModelProto:
    """Angles of positions: through `narrow`, or made by a matrix product."""
    nodes = [helper.make_node("Cast", ["positions"], ["narrow"], to=narrow or FLOAT)]
    nodes.append(helper.make_node("Cast", ["narrow"], ["at"], to=FLOAT))
    how = "MatMul" if product else "Mul"
    nodes.append(helper.make_node(how, ["at", "inv_freq"], ["angle"], "angles"))
    nodes += [helper.make_node(name, ["angle"], [name], name.lower()) for name in ("Cos", "Sin")]
    inputs = {"positions": (INT, ["batch", "sequence", 1])}
    constants = {"inv_freq": np.ones((1, 8), np.float32)}
    return model(nodes, inputs, {"Cos": FLOAT, "Sin": FLOAT}, constants)


def branched() -> onnx.ModelProto:
    out = helper.make_tensor_value_info("y", HALF, None)
    branches = {
        name: helper.make_graph([attention()], name, [], [out])
        for name in ("then_branch", "else_branch")
    }
    node = helper.make_node("If", ["short"], ["y_out"], "by length", **branches)
    return model([node], QKV | {"short": (TensorProto.BOOL, [])}, {"y_out": HALF})


def grouped() -> onnx.ModelProto:
    node = helper.make_node(
        "GroupQueryAttention", ["q"], ["y"], "gqa", domain="com.microsoft", num_heads=2
    )
    return model([node], {"q": QKV["q"]}, {"y": HALF})


PAST = {"past_key": (HALF, CACHE), "past_value": (HALF, CACHE)}
LENGTHS = {"used": (INT, ["batch"])}
MASK = {"mask": (HALF, [1, 1, "sequence", "sequence"])}
BAD: dict[str, tuple[Model, str]] = {
    "lengths that are dropped": (
        lambda: plain("", "", "", "used", inputs=LENGTHS),
        r"'scores' takes nonpad_kv_seqlen 'used'.*drops without a word.*lowering 'tensorrt'",
    ),
    "is_causal on a cache": (lambda: grown(is_causal=1), "is_causal=1.*first key.*'append'"),
    "is_causal and a mask": (
        lambda: plain("mask", inputs=MASK, is_causal=1),
        "a mask and is_causal=1",
    ),
    "past inputs": (lambda: plain("", "past_key", "past_value", inputs=PAST), "past inputs"),
    "softcap": (lambda: plain(softcap=30.0), "softcap=30.*matrix products"),
    "softmax_precision": (lambda: plain(softmax_precision=1), "softmax_precision=1"),
    "a window of its own": (lambda: plain(left_window_size=4), "left_window_size=4"),
    "a mask of the lowest number": (lambda: masked(-65504.0), "-6.55e.04.*half.*NaN"),
    "the lowest number in bfloat16": (
        lambda: masked(-3.3895e38, TensorProto.BFLOAT16),
        "half the lowest number.*overflows",
    ),
    "two masks that add up": (lambda: masked(-65504.0, twice=True), "another mask added"),
    "infinity": (lambda: masked(-np.inf), "-inf"),
    "the same in matrix products": (lambda: in_products(-65504.0), "Softmax 'weights'.*NaN"),
    "positions in float16": (lambda: turned(HALF), r"Cos 'cos' takes an angle.*float16.*2,048"),
    "positions in bfloat16": (lambda: turned(TensorProto.BFLOAT16), "through bfloat16"),
    "angles by a matrix product": (lambda: turned(product=True), "MatMul 'angles'.*TF32"),
    "attention in a branch": (branched, "lies inside If 'by length'"),
    "onnxruntime's operator": (grouped, "'gqa' is onnxruntime's own operator"),
    "a cache of three axes": (lambda: scattered(["batch", 64, 16]), "of 3 axes"),
    "a cache along another axis": (
        lambda: scattered(["batch", 64, 2, 16], axis=1),
        "along axis 1; TensorRT's cache is",
    ),
    "a cache that does not go out": (
        lambda: scattered(["batch", 2, 64, 16], out="kept"),
        "an input of the graph, into one of its outputs",
    ),
}
GOOD: dict[str, Model] = {
    "is_causal without a cache": lambda: plain(is_causal=1),
    "a cache without is_causal": grown,
    "a finite mask": lambda: masked(-32752.0),
    "a small mask twice": lambda: masked(-1e4, twice=True),
    "a finite mask in bfloat16": lambda: masked(-1.69e38, TensorProto.BFLOAT16),
    "a finite mask in products": lambda: in_products(-1e4),
    "float32 positions": turned,
    "a cache": lambda: scattered(["batch", 2, 64, 16]),
    "a cache whose size is given later": lambda: scattered(["batch", 2, "capacity", 16]),
}


def saved(made: onnx.ModelProto, folder: Path) -> Path:
    onnx.save(made, folder / "model.onnx")
    return folder / "model.onnx"


@pytest.mark.parametrize("form", BAD)
def test_a_form_that_goes_wrong_is_refused_by_its_node(form: str, tmp_path: Path) -> None:
    made, named = BAD[form]
    with pytest.raises(InputError, match=named) as error:
        refuse(saved(made(), tmp_path))
    assert "\n" not in str(error.value)
    assert error.value.status == 2


@pytest.mark.parametrize("form", GOOD)
def test_a_form_that_is_right_passes(form: str, tmp_path: Path) -> None:
    refuse(saved(GOOD[form](), tmp_path))


@pytest.mark.parametrize(
    ("lowering", "cache", "named"),
    [
        ("standard", "growing", "past inputs"),
        ("standard", "fixed", "nonpad_kv_seqlen"),
        ("ort", "growing", "GroupQueryAttention"),
    ],
)
def test_artifacts_for_other_runtimes_are_refused(tiny, lowering, cache, named) -> None:
    with pytest.raises(InputError, match=rf"{named}.*export with lowering 'tensorrt'"):
        refuse(tiny(lowering, "float32", cache).model)


@pytest.mark.parametrize(
    ("dtype", "cache", "padding"),
    [("float32", "fixed", True), ("float16", "growing", True), ("bfloat16", "none", False)],
)
def test_the_lowerings_own_files_pass(tiny, dtype: str, cache: str, padding: bool) -> None:
    refuse(tiny("tensorrt", dtype, cache, padding).model)


def test_what_is_not_a_model_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"not an ONNX model")
    with pytest.raises(InputError, match="is not an ONNX model"):
        refuse(path)

"""What lies in the file: operators, symbolic axes, names, and nothing of the machine."""

import json
import os
import shutil

import numpy as np
import onnx
import pytest

from rope_export import Artifact, RopeExportError, export, open_session
from rope_export.artifacts import external_data
from rope_export.artifacts.operators import Operators, operators_of
from rope_export.exporter import onnx_file

KINDS = [
    ("portable", "none", False, "float16"),
    ("portable", "none", True, "float32"),
    ("portable", "growing", False, "float32"),
    ("portable", "growing", True, "float16"),
    ("portable", "growing", True, "bfloat16"),
    ("standard", "none", False, "float32"),
    ("standard", "none", True, "float16"),
    ("standard", "growing", False, "bfloat16"),
    ("standard", "growing", True, "float16"),
    ("standard", "fixed", False, "bfloat16"),
    ("standard", "fixed", True, "float32"),
    ("ort", "growing", True, "float16"),
    ("ort", "fixed", False, "float32"),
    ("ort", "fixed", True, "bfloat16"),
]
"""Every cache with and without padding, and every dtype, in each lowering that has them."""
OPSETS = {"portable": 18, "standard": 23, "ort": 23}


@pytest.mark.parametrize(("lowering", "cache", "padding", "dtype"), KINDS)
def test_every_axis_is_symbolic_under_its_name(tiny, lowering, cache, padding, dtype) -> None:
    graph = onnx.load(tiny(lowering, dtype, cache, padding).model).graph
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in [*graph.input, *graph.output]
    }
    wanted = {
        "hidden_states": ["batch", "sequence", 64],
        "position_ids": ["batch", "sequence"],
        "attention_output": ["batch", "sequence", 64],
    }
    if cache == "growing":
        for name in ("key", "value"):
            wanted[f"past_{name}"] = ["batch", 2, "past", 16]
            wanted[f"present_{name}"] = ["batch", 2, "past + sequence", 16]
    if cache == "fixed":
        wanted["cache_lengths"] = ["batch"]
        for name in ("key_cache", "value_cache"):
            wanted[name] = wanted[f"{name}_out"] = ["batch", 2, "capacity", 16]
    if padding:
        wanted["attention_mask"] = ["batch", "capacity" if cache == "fixed" else "total"]
    assert shapes == wanted


@pytest.mark.parametrize(("lowering", "cache", "padding", "dtype"), KINDS)
def test_the_file_is_valid_and_of_its_opset(tiny, lowering, cache, padding, dtype) -> None:
    path = tiny(lowering, dtype, cache, padding).model
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(path)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    opset = 24 if (lowering, cache) == ("standard", "fixed") else OPSETS[lowering]
    own = {"com.microsoft": 1} if lowering == "ort" else {}
    assert {o.domain: o.version for o in model.opset_import} == {"": opset, **own}
    operators = {node.op_type for node in model.graph.node if not node.domain}
    assert ("RotaryEmbedding" in operators) == (lowering != "portable")
    assert ("Attention" in operators) == (lowering == "standard")
    assert [n.op_type for n in model.graph.node if n.domain] == ["GroupQueryAttention"] * len(own)
    for operator in operators:
        assert onnx.defs.get_schema(operator, opset, "").since_version <= opset
    softmax_in_float32(model)


def softmax_in_float32(model: onnx.ModelProto) -> None:
    inferred = onnx.shape_inference.infer_shapes(model)
    types = {v.name: v.type.tensor_type.elem_type for v in inferred.graph.value_info}
    for node in model.graph.node:
        if node.op_type == "Softmax":
            assert types[node.input[0]] == onnx.TensorProto.FLOAT
        if node.op_type == "Attention":
            (precision,) = (a.i for a in node.attribute if a.name == "softmax_precision")
            assert precision == onnx.TensorProto.FLOAT
        if node.op_type in ("Cos", "Sin"):
            assert types[node.output[0]] == onnx.TensorProto.FLOAT


def test_nothing_of_this_machine_is_in_the_file(tiny) -> None:
    text = tiny().model.read_bytes() + (tiny().path / "manifest.json").read_bytes()
    for word in (os.getcwd(), str(tiny().path), "site-packages", "stack_trace"):
        assert word.encode() not in text


def test_two_exports_are_the_same_bytes(tiny, tiny_config, tmp_path) -> None:
    again = export(tiny_config, out=tmp_path / "again", lowering="standard")
    for name in ("model.onnx", "manifest.json"):
        assert (again.path / name).read_bytes() == (tiny().path / name).read_bytes()


def test_large_weights_lie_in_a_file_of_their_own(tiny, tiny_config, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(onnx_file, "EXTERNAL_ABOVE", 1_000)
    artifact = export(tiny_config, out=tmp_path / "large", lowering="standard")
    assert external_data.locations(artifact.model.read_bytes()) == {"model.onnx.data"}
    assert set(artifact.manifest.files) == {"model.onnx", "model.onnx.data"}
    inputs = call(2, 3, 4)
    with open_session(artifact) as large, open_session(tiny()) as small:
        for name, value in large.run(inputs).items():
            np.testing.assert_array_equal(value, small.run(inputs)[name])
    with (artifact.path / "model.onnx.data").open("r+b") as file:
        file.write(b"\1")
    with pytest.raises(RopeExportError, match="sha256"):
        Artifact.open(artifact)


def call(batch: int, sequence: int, past: int) -> dict[str, np.ndarray]:
    stream = np.random.default_rng(0)
    return {
        "hidden_states": stream.standard_normal((batch, sequence, 64), dtype=np.float32),
        "position_ids": np.tile(past + np.arange(sequence), (batch, 1)),
        "past_key": stream.standard_normal((batch, 2, past, 16), dtype=np.float32),
        "past_value": stream.standard_normal((batch, 2, past, 16), dtype=np.float32),
    }


@pytest.mark.parametrize("lowering", ["portable", "standard"])
def test_one_artifact_serves_every_size(tiny, lowering) -> None:
    with open_session(tiny(lowering)) as session, open_session(tiny(lowering), "eager") as eager:
        for sizes in [(1, 1, 0), (1, 1, 1), (3, 2, 0), (2, 5, 9), (5, 1, 300), (1, 64, 1)]:
            inputs = call(*sizes)
            found, expected = session.run(inputs), eager.run(inputs)
            for name, value in found.items():
                np.testing.assert_allclose(value, expected[name], rtol=0, atol=64 * 2**-23)


def test_an_export_replaces_an_artifact_but_nothing_else(tiny, tiny_config, tmp_path) -> None:
    out = tmp_path / "out"
    shutil.copytree(tiny("portable").path, out)
    assert export(tiny_config, out=out, lowering="standard").manifest.lowering == "standard"
    (out / "notes.txt").write_text("mine")
    with pytest.raises(RopeExportError, match=r"notes\.txt"):
        export(tiny_config, out=out, lowering="portable")
    assert json.loads((out / "manifest.json").read_text())["lowering"] == "standard"


@pytest.mark.parametrize("lowering", ["portable", "standard", "ort", "tensorrt"])
def test_operators_are_those_that_onnx_reads(tiny, lowering) -> None:
    """Of subgraphs too, and with their domains."""
    model = tiny(lowering, "float32", "growing").model

    def nodes(graph):
        for node in graph.node:
            yield node
            for attribute in node.attribute:
                yield from nodes(attribute.g) if attribute.HasField("g") else ()

    expected = {
        f"{x.domain}.{x.op_type}" if x.domain else x.op_type for x in nodes(onnx.load(model).graph)
    }
    assert operators_of(model.read_bytes()) == Operators(frozenset(expected), float64=False)


@pytest.mark.parametrize(
    "text",
    [
        "y = Cast <to = 11> (x)",
        "y = Constant <value = double[1] {1.0}> ()",
        "y = If (x) <then_branch = a () => (z) { z = Cast <to = 11> (x) }, "
        "else_branch = b () => (z) { z = Cast <to = 11> (x) }>",
    ],
)
def test_float64_is_seen(text) -> None:
    head = '<ir_version: 10, opset_import: ["" : 23]> g (bool[1] x) => (double[1] y)'
    assert operators_of(onnx.parser.parse_model(f"{head} {{ {text} }}").SerializeToString()).float64

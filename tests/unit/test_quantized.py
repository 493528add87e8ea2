"""Weights in 8 and 4 bits: what they stand for, what is proven of them, and what they cost."""

import dataclasses
import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from rope_export import AttentionSpec, export, verify
from rope_export.artifacts.deployed import file_weights
from rope_export.checkpoints.stored import store
from rope_export.errors import InputError
from rope_export.exporter import pipeline
from rope_export.parity.report.lines import every_line
from rope_export.quantization import Quantization, pack, unpack
from tests.conftest import TINY


@pytest.fixture
def all_prompts() -> None:
    """In place of `short_prompts`."""


HOWS = [(4, 32), (4, 16), (8, 32), (8, 128)]


@pytest.mark.parametrize("inputs", [64, 72], ids=["whole blocks", "a part of a block"])
@pytest.mark.parametrize(("bits", "block_size"), HOWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_packed_weight_stands_for_what_onnxruntime_multiplies_with(
    bits, block_size, inputs, dtype
) -> None:
    """The operator's own product with the identity is the weight."""
    how = Quantization(bits=bits, block_size=block_size, accuracy_level=1)
    weight = torch.randn(24, inputs, generator=torch.Generator().manual_seed(0)).to(dtype)
    stored = pack(weight, how)
    node = onnx.helper.make_node(
        "MatMulNBits", ["x", "packed", "scales"], ["y"], domain="com.microsoft", K=inputs, N=24
    )
    node.attribute.extend(onnx.helper.make_attribute(k, v) for k, v in vars(how).items())
    kind = onnx.TensorProto.FLOAT if dtype == torch.float32 else onnx.TensorProto.FLOAT16
    graph = onnx.helper.make_graph(
        [node],
        "product",
        [onnx.helper.make_tensor_value_info("x", kind, [inputs, inputs])],
        [onnx.helper.make_tensor_value_info("y", kind, [inputs, 24])],
        [
            onnx.numpy_helper.from_array(value, name)
            for name, value in (("packed", stored.packed), ("scales", stored.scales))
        ],
    )
    opsets = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (found,) = session.run(None, {"x": np.eye(inputs, dtype=stored.scales.dtype)})
    np.testing.assert_array_equal(unpack(stored, how, inputs), found.T)


@pytest.mark.parametrize(
    ("weights", "options", "prompts"),
    [
        ("int4", {"cache": "fixed"}, "all_prompts"),
        ("int4", {"accuracy_level": 1, "block_size": 16}, "short_prompts"),
        ("int4", {"dtype": "float16", "cache": "fixed", "padding": True}, "short_prompts"),
        ("int8", {}, "all_prompts"),
        ("int8", {"accuracy_level": 0, "dtype": "float16"}, "short_prompts"),
    ],
    ids=str,
)
def test_sound_artifacts_pass(exported, weights, options, prompts, request) -> None:
    """Kernels that round activations to int8 have all prompts."""
    request.getfixturevalue(prompts)
    artifact = exported(TINY, weights=weights, **options)
    assert artifact.manifest.lowering == "ort"
    report = verify(artifact)
    assert (report.status, report.weights) == ("passed", "proven")
    assert {node.op_type for node in onnx.load(artifact.model).graph.node} >= {"MatMulNBits"}


@pytest.mark.usefixtures("short_prompts")
def test_what_the_bits_cost_is_told_and_falls_with_more_of_them(exported, tiny) -> None:
    loss = {}
    for weights in ("int4", "int8"):
        report = verify(exported(TINY, weights=weights))
        assert report.quantization_error is not None
        assert any("the source's own weights" in line for line in every_line(report))
        assert (
            json.loads(json.dumps(report.to_json()))["quantization_error"]
            == report.quantization_error
        )
        loss[weights] = report.quantization_error["relative L2"]
    # Sixteen times the steps, and a scale that is set by one value of 32.
    assert 8 < loss["int4"] / loss["int8"] < 32
    assert verify(tiny()).quantization_error is None


@pytest.mark.usefixtures("short_prompts")
def test_other_scales_than_the_sources_fail(tiny_config, tmp_path, monkeypatch) -> None:
    """The artifact agrees with itself, but not with its source."""

    def twice(weights, integers, how):
        stored = store(weights, integers, how)
        return {n: dataclasses.replace(x, scales=x.scales * 2) for n, x in stored.items()}

    monkeypatch.setattr(pipeline, "store", twice)
    report = verify(export(tiny_config, out=tmp_path / "x", weights="int4"))
    failed = {(row.runtime, row.output) for row in report.rows if row.status == "failed"}
    assert {("file", f"{name}_proj.weight") for name in "qkvo"} <= failed


@pytest.mark.usefixtures("short_prompts")
def test_a_value_off_by_one_step_fails(exported, monkeypatch) -> None:
    """A kernel that is right but reads another weight than the one that is proven."""
    artifact = exported(TINY, weights="int4", accuracy_level=1, block_size=16)

    def shifted(opened):
        weights = file_weights(opened)
        return {**weights, "v_proj.weight": weights["v_proj.weight"] * (1 + 2**-12)}

    monkeypatch.setattr("rope_export.parity.layer.weights.file_weights", shifted)
    monkeypatch.setattr("rope_export.parity.layer.weights._from_source", lambda *_: None)
    report = verify(artifact)
    assert report.weights == "unproven"
    assert "onnxruntime" in {row.runtime for row in report.rows if row.status == "failed"}


REFUSED = [
    ({"weights": "int3"}, "weights='int3'.*int8, int4"),
    ({"weights": "int4", "block_size": 24}, "block_size=24.*power of two"),
    ({"weights": "int4", "accuracy_level": 2}, "accuracy_level=2.*0, 1, 4"),
    ({"weights": "int4", "lowering": "standard"}, "'standard' cannot have weights in 4 bits; ort"),
    ({"weights": "int8", "dtype": "bfloat16"}, "float32 or float16, not bfloat16"),
]


@pytest.mark.parametrize(("options", "named"), REFUSED, ids=str)
def test_what_cannot_be_is_refused(tiny_config, tmp_path, options, named) -> None:
    with pytest.raises(InputError, match=named) as error:
        export(tiny_config, out=tmp_path / "x", **options)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "x").exists()


def test_every_projection_is_stored_in_few_bits_and_nothing_else(exported) -> None:
    artifact = exported({**TINY, "model_type": "qwen3"}, weights="int4")
    names = {t.name for t in onnx.load(artifact.model).graph.initializer}
    for name in AttentionSpec.from_json(artifact.manifest.spec).weight_shapes:
        assert (name in names) == (not name.endswith("_proj.weight"))
    size = sum(file.bytes for file in artifact.manifest.files.values())
    # Four bits and an eighth of a float32 for each of 64 * (64 + 32 + 32 + 64) values.
    assert size < 12_288 * 5 / 8 + 16_000

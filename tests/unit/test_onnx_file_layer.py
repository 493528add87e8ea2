"""A file with one attention layer that others made: what its inputs are, and what they take."""

from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from rope_export import AttentionSpec, export, verify
from rope_export.checkpoints import open_model
from rope_export.errors import UnavailableError
from rope_export.parity.onnx_file.layer_names import match_layer
from tests.conformance.exporters import samples
from tests.unit.test_onnx_file_names import Tensor, written

CONFIG = samples.config("default")
HIDDEN: Tensor = ("hidden_states", TensorProto.FLOAT, ("batch", "sequence", 16))
OUTPUT: Tensor = ("attention_output", TensorProto.FLOAT, ("batch", "sequence", 16))
PAST = ("batch", 1, "past", 8)


@pytest.fixture(scope="module")
def spec() -> AttentionSpec:
    return open_model(CONFIG, seed=0).layer(0).spec


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            [("attention_mask", TensorProto.INT64, ("batch", 1, "sequence", "total"))],
            r"takes attention_mask int64\(batch, 1, sequence, total\), and it is not known",
        ),
        (
            [("cos", TensorProto.FLOAT, None), ("sin", TensorProto.FLOAT, None)],
            r"takes cos float32\(\?\), sin float32\(\?\), and it is not known",
        ),
        (
            [("past_key", TensorProto.FLOAT16, PAST), ("past_value", TensorProto.FLOAT16, PAST)],
            r"past_key float16\(batch, 1, past, 8\) is not of float32, as its hidden_states are",
        ),
    ],
    ids=["mask of numbers", "angles of no shape", "caches of another dtype"],
)
def test_what_is_not_known_of_a_layer_is_refused(
    tmp_path: Path, spec: AttentionSpec, more: list[Tensor], message: str
) -> None:
    caches = [(f"present_{x[0][5:]}", *x[1:]) for x in more if x[0].startswith("past")]
    file = written(tmp_path / "m.onnx", [HIDDEN, *more], [OUTPUT, *caches])
    with pytest.raises(UnavailableError, match=message):
        match_layer(file, spec, {})


def test_positions_of_several_axes_are_refused(tmp_path: Path, spec: AttentionSpec) -> None:
    assert spec.rope is not None
    several = replace(spec, rope=replace(spec.rope, pair_axes=(0, 0, 1, 2)))
    shape = ("batch", "sequence", 8)
    angles: list[Tensor] = [(name, TensorProto.FLOAT, shape) for name in ("cos", "sin")]
    file = written(tmp_path / "m.onnx", [HIDDEN, *angles], [OUTPUT])
    assert match_layer(file, spec, {}).inputs.keys() >= {"cos", "sin"}
    with pytest.raises(UnavailableError, match="the layer's positions have 3 axes"):
        match_layer(file, several, {})


def test_a_cache_that_is_only_given_is_an_output_like_others(
    tmp_path: Path, spec: AttentionSpec
) -> None:
    present: Tensor = ("present_key", TensorProto.FLOAT, PAST)
    file = written(tmp_path / "m.onnx", [HIDDEN], [OUTPUT, present])
    matched = match_layer(file, spec, {})
    assert (matched.caches, matched.others) == ({}, ("present_key",))


def test_recorded_calls_that_a_layer_has_no_inputs_for_are_left_out(tmp_path: Path) -> None:
    """Its positions are computed of the cache, and others were recorded."""
    artifact = export(CONFIG, out=tmp_path / "layer", cache="growing")
    cases = ["1x7, past 0", "1x4, past 0, positions drawn"]
    verify(artifact, record=tmp_path / "calls.npz", cases=cases)
    model = onnx.load(str(artifact.path / "model.onnx"))
    graph = model.graph
    graph.input.remove(next(x for x in graph.input if x.name == "position_ids"))
    graph.initializer.append(helper.make_tensor("step", TensorProto.INT64, [], [1]))
    for at, node in enumerate(
        [
            helper.make_node("Shape", ["past_key"], ["past_size"], start=2, end=3),
            helper.make_node("Shape", ["hidden_states"], ["new_size"], start=1, end=2),
            helper.make_node("Shape", ["hidden_states"], ["tokens"], start=0, end=2),
            helper.make_node("Add", ["past_size", "new_size"], ["total_size"]),
            helper.make_node("Squeeze", ["past_size"], ["first"]),
            helper.make_node("Squeeze", ["total_size"], ["limit"]),
            helper.make_node("Range", ["first", "limit", "step"], ["row"]),
            helper.make_node("Expand", ["row", "tokens"], ["position_ids"]),
        ]
    ):
        graph.node.insert(at, node)
    path = tmp_path / "layer.onnx"
    onnx.save(model, str(path))
    report = verify(path, source=CONFIG, layer=0, replay=tmp_path / "calls.npz")
    assert report.passed, report.problems
    assert {row.case for row in report.rows if row.runtime == "onnxruntime"} == {cases[0]}
    assert "1 cases lie outside of the profiles of onnxruntime." in report.left_out

"""The first wrong tensor of a faulty file is named, with its ONNX value, and what is wrong with it.

All faults, in every lowering: `python -m scripts.plant_faults`, which writes docs/faults.md.
"""

import onnx
import pytest

from rope_export import RotaryAttention
from rope_export.exporter.taps import KEY
from rope_export.lowerings.base import Lowering
from rope_export.parity.cases import Case
from rope_export.parity.harness import compare
from rope_export.parity.report.located import Located
from rope_export.parity.subject import Request, Revealing
from rope_export.parity.subjects.opening import subject_of
from tests.conformance.faults.faults import FAULTS
from tests.conformance.faults.planting import artifact
from tests.conformance.faults.run import kind, spec_of

TOKENS = 16


def looked_at(layer: str, fault: str | None, lowering: str, tmp_path, dtype: str = "float32"):
    """The report on a few cases of one artifact."""
    spec = spec_of(layer, dtype)
    _, cache, padding = kind(layer, spec)
    planted = None
    if fault is not None:
        planted = next(x for name, x in FAULTS if (name, x.name) == (layer, fault))
    made = artifact(
        spec, tmp_path / "x", lowering=lowering, cache=cache, padding=padding, fault=planted
    )
    subject = subject_of(made, Request())
    past = 0 if cache == "none" else 9
    cases = [Case(batch=2, sequence=TOKENS), Case(batch=2, sequence=TOKENS, past=past, start=40)]
    if padding:
        cases.append(Case(batch=2, sequence=TOKENS, past=past, padding="left"))
    subject.cases = lambda: cases
    subject.properties = lambda seed: ()
    subject.revealing = lambda prepared: Revealing()
    return compare(subject, runtimes=["onnxruntime"])


def first(report) -> Located:
    (located,) = report.located
    assert located.runtime == "onnxruntime"
    return located


NAMED = [
    ("plain", "theta doubled", "portable", "cos", "theta=20000"),
    ("plain", "sine negated", "ort", "sin", "sin has the other sign"),
    ("plain", "layout swapped", "standard", "q_rotated", "wrong pairing"),
    ("plain", "key heads in turn, not in groups", "ort", "q_proj", "head permutation"),
    ("plain, padding", "mask inverted", "tensorrt", "mask", "mask of the other sign"),
    ("plain, fixed", "lengths ignored", "ort", "key_cache_out", "cache misplacement"),
    ("plain", "past keys negated", "ort", "present_key", "past_key is negated"),
    ("plain", "past of another row", "tensorrt", "present_value", "rows of past_value are in"),
    ("plain", "new tokens before the past", "portable", "present_key", "come before the past"),
    ("plain", "keys and values exchanged", "standard", "present_key", "caches are exchanged"),
    ("plain, fixed", "cached values negated", "ort", "value_cache_out", "value_cache is negated"),
    ("window 8", "window one slot more", "portable", "mask", "a window of one slot more"),
]


QUICK = {"theta doubled", "key heads in turn, not in groups", "lengths ignored"}


@pytest.mark.parametrize(
    ("layer", "fault", "lowering", "tensor", "diagnosis"),
    [x if x[1] in QUICK else pytest.param(*x, marks=pytest.mark.long) for x in NAMED],
)
def test_the_first_wrong_tensor_is_named(
    layer, fault, lowering, tensor, diagnosis, tmp_path
) -> None:
    report = looked_at(layer, fault, lowering, tmp_path)
    located = first(report)
    assert located.tensor == tensor
    assert diagnosis in located.diagnosis
    assert located.error > located.tolerance
    states = [tap.status for tap in located.taps]
    assert states.index("failed") == [tap.tensor for tap in located.taps].index(tensor)
    values = {output for node in model_of(tmp_path).graph.node for output in node.output}
    assert located.value in values
    assert report.to_json()["located"] == [located.to_json()]


def test_a_sound_artifact_has_no_wrong_tensor(tmp_path) -> None:
    report = looked_at("plain", None, "standard", tmp_path)
    assert report.passed
    assert report.located == ()


def test_a_fault_of_eager_is_located_there(tmp_path, monkeypatch) -> None:
    """What eager and the file get wrong alike is wrong in both, at the same tensor."""
    project = RotaryAttention.project

    def negated(self, hidden_states):
        q, k, v = project(self, hidden_states)
        return q, -k, v

    monkeypatch.setattr(RotaryAttention, "project", negated)
    report = looked_at("plain", None, "standard", tmp_path)
    assert {(x.runtime, x.tensor) for x in report.located} == {("eager", "k"), ("onnxruntime", "k")}
    assert all("negated" in x.diagnosis for x in report.located)


@pytest.mark.long
@pytest.mark.parametrize("way", ["portable", "standard", "ort", "tensorrt"])
def test_names_of_tensors_change_nothing_of_the_graph(way, tmp_path, monkeypatch) -> None:
    named = exported(tmp_path / "named", way)
    monkeypatch.setattr(Lowering, "tap", lambda self, name, x, axes: x)
    plain = exported(tmp_path / "plain", way)
    assert KEY in {x.key for x in named.metadata_props}
    assert [x.op_type for x in named.graph.node] == [x.op_type for x in plain.graph.node]
    assert [x.attribute for x in named.graph.node] == [x.attribute for x in plain.graph.node]


def exported(folder, way: str) -> onnx.ModelProto:
    made = artifact(spec_of("gate", "float32"), folder, lowering=way, cache="growing", padding=True)
    return onnx.load(made.path / "model.onnx")


def model_of(folder) -> onnx.ModelProto:
    return onnx.load(folder / "x" / "model.onnx")

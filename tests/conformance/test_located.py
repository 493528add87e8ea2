"""The first wrong tensor of a faulty file is named, with its ONNX value, and what is wrong with it.

All faults, in every lowering: `python -m scripts.plant_faults`, which writes docs/faults.md.
"""

import pytest

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
    planted = next((x for name, x in FAULTS if (name, x.name) == (layer, fault)), None)
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
    ("sinks, window 8", "window one slot more", "portable", "mask", "a window of one slot more"),
]


@pytest.mark.parametrize(("layer", "fault", "lowering", "tensor", "diagnosis"), NAMED[:4])
def test_the_first_wrong_tensor_is_named(
    layer, fault, lowering, tensor, diagnosis, tmp_path
) -> None:
    located = first(looked_at(layer, fault, lowering, tmp_path))
    assert located.tensor == tensor
    assert diagnosis in located.diagnosis
    assert located.error > located.tolerance
    states = [tap.status for tap in located.taps]
    assert states.index("failed") == [tap.tensor for tap in located.taps].index(tensor)

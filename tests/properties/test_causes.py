"""What explains a wrong tensor, on values as a faulty runtime would have them."""

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest

from rope_export.checkpoints.drawn import drawn_weights
from rope_export.interface import attention_interface
from rope_export.parity.cases import Case
from rope_export.parity.layer.inputs import layer_inputs
from rope_export.parity.layer.inv_freq import frequencies
from rope_export.parity.layer.reference import ReferenceLayer
from rope_export.parity.locate.diagnosis import explanations
from rope_export.parity.locate.stage import Stage, compared
from rope_export.parity.locate.stages import cache_stage, layer_stages
from rope_export.parity.locate.suspect import Suspect
from rope_export.parity.onnx_file.layer_faults import OUTPUT, layer_causes
from rope_export.parity.report.result import Report
from rope_export.parity.rows import counted
from tests.conformance.faults.layers import layer


def reference(name: str, dtype: str = "float32") -> ReferenceLayer:
    """The layer of that name with drawn weights."""
    spec = layer(name, dtype)
    weights = {key: x.double().numpy() for key, x in drawn_weights(spec, 0, 0).items()}
    return ReferenceLayer(spec, weights, frequencies(spec))


LAYER = reference("plain")


Wrong = Callable[[Stage], np.ndarray]


def causes(
    case: Case, kind: str = "growing", of: ReferenceLayer = LAYER, **wrong: Wrong
) -> list[str]:
    """What explains the first of some tensors of a call with padding that are others."""
    inputs = layer_inputs(case, of, attention_interface(of.spec, cache=kind, padding=True), 0)
    trace = of(inputs)
    stages = {stage.key: stage for stage in layer_stages(of, of, trace)}
    name = list(trace.outputs)[1]
    used = trace.starts + trace.x.shape[1]
    stages["cache"] = cache_stage(name, trace.outputs[name], used, 0 * trace.outputs[name] + 1e-12)
    seen = {}
    for key, value in wrong.items():
        stage = stages[key]
        seen[key] = compared(
            stage, of.spec.dtype, "onnxruntime", value(stage), stage.expected, "value"
        )
    first = next(iter(seen.values()))
    assert first.failed
    suspect = Suspect(layer=of, trace=trace, inputs=inputs, first=first, seen=seen)
    return [x.text for x in explanations(suspect)]


def test_a_full_cache_is_looked_at_too() -> None:
    """Entries one slot further than they are written would not fit."""
    case = Case(batch=2, sequence=7, past=5, spare=0)
    texts = causes(case, "fixed", cache=lambda stage: -stage.expected)
    assert any("negated" in text for text in texts)


def test_fixed_caches_of_a_latent_are_looked_at_too() -> None:
    case = Case(batch=2, sequence=7, past=5)

    def past_negated(stage: Stage) -> np.ndarray:
        return np.where(np.arange(stage.expected.shape[1])[:, None] < 5, -1, 1) * stage.expected

    texts = causes(case, "fixed", reference("latent"), cache=past_negated)
    assert "cache misplacement: latent_cache is negated" in texts


def test_a_mask_that_shows_nothing_explains_none_that_shows_something() -> None:
    """Of the other sign, a mask of ones hides every slot."""
    drawn = np.random.default_rng(0)

    def random(stage: Stage) -> np.ndarray:
        return drawn.random(stage.expected.shape) < 0.5

    assert causes(Case(batch=2, sequence=7, past=5), allowed=random) == []


def test_frequencies_of_one_are_of_no_base() -> None:
    """They are those of theta = 1, which no rotation has."""
    at = np.arange(8.0)[None, :, None]
    tables = {"cos": np.cos(at), "sin": np.sin(at)}
    wrong = {key: lambda stage, x=x: x + 0 * stage.expected for key, x in tables.items()}
    assert causes(Case(batch=1, sequence=8), **wrong) == []


def test_a_factor_near_one_is_told_from_one() -> None:
    case = Case(batch=2, sequence=7)
    texts = causes(case, q_proj=lambda stage: stage.expected * (1 + 4e-6))
    assert "another scale: it is 1 + 4.0e-06 times what it should be" in texts


def test_a_factor_has_the_digits_that_rounding_leaves_it() -> None:
    """What fits is told if it fits every case that is looked at, in the same words."""

    def scaled(stage: Stage) -> np.ndarray:
        return (stage.expected * 1.03).astype(np.float16).astype(np.float64)

    every = [Case(batch=2, sequence=count, past=5) for count in (7, 8, 9, 10, 11)]
    layer_of_float16 = reference("plain", "float16")
    texts = {causes(case, of=layer_of_float16, v_proj=scaled)[0] for case in every}
    assert texts == {"another scale: it is 1.03 times what it should be"}


def test_nothing_but_zeros_is_taken_for_zeros() -> None:
    """sin at position 0 is 0, of which no error is a share."""
    texts = causes(Case(batch=1, sequence=1), sin=lambda stage: stage.expected + 1)
    assert "sin has the other sign" not in texts
    assert "sin is missing (taken as 1)" in texts


@pytest.mark.parametrize(("cut", "dtype"), [(1, np.float32), (0, np.float16)])
def test_an_output_of_another_form_is_no_counterfactual(cut, dtype) -> None:
    """Of a file that others made, which has no tensors on the way."""
    case = Case(batch=2, sequence=7)
    inputs = layer_inputs(
        case, LAYER, attention_interface(LAYER.spec, cache="none", padding=False), 0
    )
    value = LAYER(inputs).output[:, cut:].astype(dtype)
    session = SimpleNamespace(run=lambda inputs: {OUTPUT: value})
    row = counted(
        case=case.name,
        seed=0,
        runtime="onnxruntime",
        output=OUTPUT,
        metric="shape or dtype",
        error=1.0,
    )
    report = Report(weights="proven", rows=[row])
    subject = SimpleNamespace(
        spec=LAYER.spec, layer=LAYER, cases=lambda: [case], inputs=lambda case, seed: inputs
    )
    layer_causes(subject, session, report, "onnxruntime", 0)
    assert [x["cause"] for x in report.causes] == ["unknown"]

"""The runtime `openvino`: in float32, and what it cannot run is refused by the operator's name."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from rope_export import RopeExportError, open_session, verify
from rope_export.errors import UnavailableError
from rope_export.runtimes import find_runtime
from rope_export.runtimes import openvino as runtime_file
from rope_export.runtimes.openvino import OpenvinoRuntime
from tests.conftest import TINY
from tests.unit.test_exporter import call

openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed")

USUAL = ("portable", "growing", True, "float32")
KINDS = [
    pytest.param(lowering, cache, padding, dtype, marks=marks)
    for lowering in ("portable", "standard")
    for cache in ("none", "growing")
    for padding in (False, True)
    for dtype in ("float32", "float16", "bfloat16")
    for marks in [() if (lowering, cache, padding, dtype) == USUAL else pytest.mark.long]
]


@pytest.mark.usefixtures("short_prompts")
@pytest.mark.parametrize(("lowering", "cache", "padding", "dtype"), KINDS)
def test_it_is_inside_of_the_tolerance(tiny, lowering, cache, padding, dtype) -> None:
    report = verify(tiny(lowering, dtype, cache, padding), runtimes=["openvino"])
    assert report.passed, report.problems
    assert {row.runtime for row in report.rows} >= {"openvino", "eager"}


def test_without_its_hint_it_would_not_be(tiny, short_prompts, monkeypatch) -> None:
    """The hint that is given is the one that counts: bfloat16 for float32 is found out."""
    hints = {**runtime_file.HINTS, "INFERENCE_PRECISION_HINT": "bf16"}
    capabilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if "BF16" not in capabilities:
        pytest.skip(f"this processor computes in {', '.join(capabilities)}")
    monkeypatch.setattr(runtime_file, "HINTS", hints)
    report = verify(tiny("standard"), runtimes=["openvino"])
    assert {row.runtime for row in report.rows if row.status == "failed"} == {"openvino"}


BOTH_WAYS = {
    "model_type": "esm",
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 1,
    "position_embedding_type": "rotary",
}


@pytest.mark.parametrize("mode", ["DISABLE", "ENABLE"])
def test_attention_without_a_mask_needs_the_other_hint(exported, monkeypatch, mode) -> None:
    """A call of one token, then one of 16, which is wrong where OpenVINO fuses."""
    monkeypatch.setattr(runtime_file, "HINTS", runtime_file.HINTS | {"SNIPPETS_MODE": mode})
    artifact = exported(BOTH_WAYS, lowering="standard", cache="none")
    numbers, worst = np.random.default_rng(0), 0.0
    with open_session(artifact, "openvino") as ours, open_session(artifact) as other:
        for rows, tokens in ((1, 1), (1, 16)):
            inputs = {
                "hidden_states": numbers.standard_normal((rows, tokens, 64), np.float32),
                "position_ids": np.tile(np.arange(tokens), (rows, 1)),
            }
            found, expected = (x.run(inputs)["attention_output"] for x in (ours, other))
            worst = max(worst, float(np.abs(found - expected).max()))
    # Sums of at most 64 terms of order 1.
    assert (worst < 64 * 2**-23) == (mode == "DISABLE")


REFUSED = {
    ("standard", "fixed", "float32"): "TensorScatter",
    ("tensorrt", "fixed", "float32"): "TensorScatter",
    ("ort", "growing", "float32"): r"com\.microsoft\.Group",
    ("ort", "fixed", "float32"): r"com\.microsoft\.Group",
}


@pytest.mark.parametrize("kind", REFUSED, ids=str)
def test_what_it_does_not_have_is_refused_by_name(tiny, kind) -> None:
    lowering, cache, dtype = kind
    artifact, runtime = tiny(lowering, dtype, cache), find_runtime("openvino")
    assert runtime.unavailable() is None
    refusal = rf"runtime 'openvino': OpenVINO 2.* has no {REFUSED[kind]}.* export"
    with pytest.raises(UnavailableError, match=refusal):
        open_session(artifact, "openvino")
    # OpenVINO itself says the same, so that the refusal goes when it has the operator.
    with pytest.raises(RopeExportError, match=r"TensorScatter-24|GroupQueryAttention") as error:
        runtime.open(artifact)
    assert "\n" not in str(error.value)


DYNAMIC = TINY | {
    "max_position_embeddings": 64,
    "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 4.0},
}


@pytest.mark.long
@pytest.mark.usefixtures("short_prompts")
def test_float64_is_refused_since_it_becomes_float32(exported, monkeypatch) -> None:
    """The frequencies of long calls are off by more than a tolerance, which is found."""
    artifact, runtime = exported(DYNAMIC, lowering="portable", cache="none"), OpenvinoRuntime
    with pytest.raises(UnavailableError, match=r"in float64.*use runtime 'onnxruntime'"):
        open_session(artifact, "openvino")
    monkeypatch.setattr(runtime, "unavailable", lambda self, artifact=None: None)
    report = verify(artifact, runtimes=["openvino"])
    failed = [row for row in report.rows if row.status == "failed"]
    assert failed
    assert {row.runtime for row in failed} == {"openvino"}


def test_threads_have_requests_of_their_own(tiny) -> None:
    calls = [call(1 + n % 3, 1 + n % 5, n % 7) for n in range(32)]
    with open_session(tiny(), "openvino", threads=1) as session, ThreadPoolExecutor(4) as pool:
        alone = [session.run(inputs) for inputs in calls]
        for found, expected in zip(pool.map(session.run, calls), alone, strict=True):
            for name, value in found.items():
                np.testing.assert_array_equal(value, expected[name])
    with pytest.raises(RopeExportError, match="the session is closed"):
        session.run(calls[0])


def test_a_stream_is_the_prefill_in_parts(tiny) -> None:
    whole = call(2, 9, 0)
    with open_session(tiny(), "openvino") as session:
        expected = session.run(whole)["attention_output"]
        stream = session.start(batch=2)
        parts = [stream.step(whole["hidden_states"][:, at : at + 3]) for at in (0, 3, 6)]
    # Sums of at most 64 terms of order 1.
    np.testing.assert_allclose(np.concatenate(parts, 1), expected, rtol=0, atol=64 * 2**-23)

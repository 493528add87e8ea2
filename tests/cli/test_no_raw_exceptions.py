"""An undamaged artifact on any runtime there is runs, or says in one line why it does not."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rope_export import Artifact, RopeExportError, open_session, verify
from rope_export.arrays import numpy_dtype, to_torch
from rope_export.cli import run
from rope_export.errors import UnavailableError
from rope_export.parity.cases import Case
from rope_export.parity.subject import Revealing
from rope_export.parity.subjects import layer as layer_subject
from rope_export.runtimes import all_runtimes
from tests.conftest import ON_EVERY_MACHINE

ARTIFACTS = [
    (lowering, cache, dtype, padding)
    for lowering, cache, dtype, padding in itertools.product(
        ("ort", "standard", "portable", "tensorrt"),
        ("none", "growing", "fixed"),
        ("float32", "float16", "bfloat16"),
        (False, True),
    )
    if not (lowering == "portable" and cache == "fixed")
]
USUAL = {
    ("ort", "growing", "float32", False),
    ("ort", "fixed", "bfloat16", True),
    ("standard", "fixed", "float16", True),
    ("standard", "fixed", "bfloat16", False),
    ("portable", "none", "float16", False),
    ("tensorrt", "fixed", "float32", False),
}
"""What an ordinary run looks at; the others are behind the long marker."""

KINDS = [pytest.param(*kind, marks=() if kind in USUAL else pytest.mark.long) for kind in ARTIFACTS]


@pytest.fixture
def few_cases(monkeypatch) -> None:
    monkeypatch.setattr(
        layer_subject,
        "regular_cases",
        lambda cache, **_: [Case(batch=2, sequence=2, past=0 if cache == "none" else 3)],
    )
    monkeypatch.setattr(layer_subject, "layer_properties", lambda *_: [])
    monkeypatch.setattr(layer_subject, "revealing_calls", lambda *_: Revealing())


def inputs_of(artifact: Artifact) -> dict[str, np.ndarray]:
    cached = artifact.manifest.cache != "none"
    axes = {"batch": 2, "sequence": 2, "past": 3, "capacity": 7, "total": 5 if cached else 2}
    stream = np.random.default_rng(0)
    inputs = {}
    for tensor in artifact.manifest.inputs:
        shape = tensor.sized(axes)
        if tensor.dtype == "int64":
            inputs[tensor.name] = np.ones(shape, np.int64)
        else:
            drawn = stream.standard_normal(shape, dtype=np.float32)
            inputs[tensor.name] = drawn.astype(numpy_dtype(tensor.dtype))
    return inputs


@pytest.mark.parametrize(("lowering", "cache", "dtype", "padding"), KINDS)
@pytest.mark.parametrize("name", list(all_runtimes()))
def test_sessions_and_streams_run_or_refuse(
    tiny: Callable[..., Artifact], name, lowering, cache, dtype, padding
) -> None:
    artifact = tiny(lowering, dtype, cache, padding)
    reason = all_runtimes()[name].unavailable(artifact)
    if reason is not None:
        with pytest.raises(UnavailableError) as error:
            open_session(artifact, name)
        assert str(error.value) == f"runtime {name!r}: {reason}"
        assert "\n" not in reason
        unable = lowering == "ort" and name == "reference"
        assert name not in ON_EVERY_MACHINE or unable or dtype == "bfloat16"
        return
    session = open_session(artifact, name)
    inputs = inputs_of(artifact)
    with session:
        session.run(inputs)
        session.run({name: to_torch(value) for name, value in inputs.items()})
        if cache != "none":
            stream = session.start(2, 7)
            hidden = inputs["hidden_states"]
            stream.step(hidden)
            stream.step(hidden, new=[2, 1] if cache == "fixed" else None)
            stream.reset()
            assert np.all(np.isfinite(stream.step(hidden).astype(np.float32)))


@pytest.mark.parametrize(("lowering", "cache", "dtype", "padding"), KINDS)
def test_verify_compares_or_says_why_not(
    tiny: Callable[..., Artifact], few_cases, runtime, lowering, cache, dtype, padding
) -> None:
    report = verify(tiny(lowering, dtype, cache, padding), runtimes=[runtime.name])
    if report.skipped:
        assert report.status == "nothing compared"
        return
    assert report.problems == []
    assert report.status == ("nothing compared" if runtime.name == "eager" else "passed")


def test_an_artifact_of_onnxruntimes_operators_names_the_way_out(tiny, capsys) -> None:
    artifact = tiny("ort", "float32", "growing")
    with pytest.raises(UnavailableError, match=r"com\.microsoft.*use runtime 'onnxruntime'"):
        open_session(artifact, "reference")
    assert run(["verify", str(artifact.path), "--runtime", "reference"]) == 3
    assert "com.microsoft" in capsys.readouterr().out


@pytest.mark.parametrize("runtime", ON_EVERY_MACHINE)
def test_a_library_that_fails_is_one_line(tiny, monkeypatch, runtime) -> None:
    """Whatever kind of exception it raises."""

    def fails(*_: Any, **__: Any) -> Any:
        raise NotImplementedError("no such thing\nand more")

    artifact = tiny()
    with open_session(artifact, runtime) as session:
        if runtime == "eager":
            monkeypatch.setattr(session.runner._layer, "forward", fails)
        elif runtime == "reference":
            monkeypatch.setattr(session.runner._evaluator, "run", fails)
        else:
            monkeypatch.setattr(type(session.runner._inner), "run_with_iobinding", fails)
        with pytest.raises(RopeExportError, match=r"failed: no such thing$") as error:
            session.run(inputs_of(artifact))
    assert error.value.status == 4


def test_a_cache_that_no_memory_holds_is_one_line(tiny) -> None:
    with (
        open_session(tiny("standard", "float32", "fixed")) as session,
        pytest.raises(RopeExportError, match=r"no memory for key_cache \(1, 2, 1125899906842624"),
    ):
        session.start(1, 2**50).step(np.ones((1, 1, 64), np.float32))

"""A decoder's calls in files: recorded, replayed, and other sides of every kind."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from rope_export import export_decoder, verify
from rope_export.artifacts.decoder import DecoderArtifact
from rope_export.errors import InputError
from rope_export.parity import Report
from rope_export.parity.decoder.cases import regular_texts
from rope_export.parity.subjects import decoder as subject
from tests.properties.test_decoder_parity import SMALL, checkpoint
from tests.support.planted_decoder import planted, scaled

transformers = pytest.importorskip("transformers")

TEXTS = ("short", "decode", "left padding", "unequal rows")
RUN = {"runtimes": ["onnxruntime"]}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = transformers.LlamaConfig(**{**SMALL, "num_hidden_layers": 2})
    return checkpoint(tmp_path_factory.mktemp("recorded") / "llama", config)


@pytest.fixture(scope="module")
def growing(source: Path) -> DecoderArtifact:
    return export_decoder(
        source, out=source.parent / "growing", lowering="portable", cache="growing"
    )


@pytest.fixture(scope="module")
def few_texts() -> None:
    def few(*args):
        return [text for text in regular_texts(*args) if text.name in TEXTS]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subject, "regular_texts", few)
        yield


@pytest.fixture(scope="module")
def file(growing: DecoderArtifact, few_texts: None) -> Path:
    """Three texts as onnxruntime read them."""
    path = growing.path.parent / "calls.npz"
    cases = ["short", "decode", "left padding"]
    assert verify(growing, **RUN, cases=cases, record=path).passed
    return path


def logits(report: Report, runtime: str = "onnxruntime") -> dict[tuple[str, str], float]:
    """The errors of the logits of each call, by metric."""
    rows = [x for x in report.rows if (x.runtime, x.output) == (runtime, "logits")]
    return {(row.case, row.metric): row.error for row in rows}


def changed(file: Path, out: Path, key: str, by: float) -> Path:
    with np.load(file) as loaded:
        arrays = {name: loaded[name].copy() for name in loaded.files}
    arrays[key].reshape(-1)[-1] += by
    np.savez(out, **arrays)
    return out


def test_every_call_of_the_whole_model_is_kept(file) -> None:
    with np.load(file, allow_pickle=False) as loaded:
        cases = {name.split("/")[0] for name in loaded.files} - {"rope_export"}
        assert cases == {
            "short",
            *(f"decode, call {at}" for at in (1, 2, 3, 4)),
            *(f"left padding, call {at}" for at in (1, 2)),
        }
        call = "left padding, call 2/inputs/"
        assert loaded[f"{call}past_key_values.1.key"].shape == (3, 2, 10, 8)
        assert loaded[f"{call}attention_mask"].tolist()[2] == [0] * 7 + [1] * 4
        assert loaded["short/outputs/onnxruntime/logits"].shape == (1, 1, SMALL["vocab_size"])
        assert "short/tolerances/logits" in loaded.files


def test_recorded_calls_are_judged_again(growing, file) -> None:
    """Upon the recorded caches: a call without a past is the same call as before."""
    before = growing.evidence.get("parity")
    once = verify(growing, **RUN, cases=["short", "decode", "left padding"])
    again = verify(growing, **RUN, replay=file)
    assert again.passed, again.problems
    assert logits(again).keys() == logits(once).keys()
    first = [key for key in logits(once) if key[0] in ("short", "decode, call 1")]
    assert first
    assert {key: logits(again)[key] for key in first} == {key: logits(once)[key] for key in first}
    layers = {row.output for row in again.rows if row.case == "decode, call 3"}
    assert {"layers.1/hidden_states", "layers.2/hidden_states", "present.1.key"} <= layers
    assert "only calls of" in " ".join(again.left_out)
    assert growing.evidence.get("parity") == before


def test_recorded_outputs_are_another_side(growing, file, tmp_path) -> None:
    report = verify(growing, **RUN, against=file)
    assert report.passed, report.problems
    of = f"onnxruntime of {file}"
    assert logits(report, of) == logits(report)
    assert set(logits(report, f"onnxruntime against {of}").values()) == {0.0}
    wrong = changed(file, tmp_path / "wrong.npz", "decode, call 2/outputs/onnxruntime/logits", 0.1)
    report = verify(growing, **RUN, against=wrong)
    failed = {(row.runtime, row.case) for row in report.rows if row.status == "failed"}
    of = f"onnxruntime of {wrong}"
    assert failed == {(name, "decode, call 2") for name in (of, f"onnxruntime against {of}")}
    two = verify(wrong, against=file)
    assert {row.case for row in two.rows if row.status == "failed"} == {"decode, call 2"}


def test_rows_of_unequal_length_are_replayed(source, few_texts, tmp_path) -> None:
    fixed = export_decoder(source, out=tmp_path / "fixed", lowering="ort", cache="fixed")
    path = tmp_path / "calls.npz"
    once = verify(fixed, **RUN, cases=["unequal rows"], record=path)
    again = verify(fixed, **RUN, replay=path)
    assert once.passed
    assert again.passed, again.problems
    assert logits(again).keys() == logits(once).keys()


def test_a_file_of_others_is_another_side(growing, few_texts, tmp_path) -> None:
    """Their file of the same model gives the same logits; with one weight changed it does not."""
    right = tmp_path / "theirs.onnx"
    shutil.copy(growing.model, right)
    report = verify(growing, **RUN, cases=["decode", "left padding"], against=right)
    assert report.passed, report.problems
    assert set(logits(report, f"onnxruntime against onnxruntime of {right}").values()) == {0.0}
    change = scaled("model.layers.1.mlp.down_proj.weight", 1.1, (7,))
    wrong = planted(growing, tmp_path / "wrong", change).model
    report = verify(growing, **RUN, cases=["decode"], against=wrong)
    failed = {row.runtime for row in report.rows if row.status == "failed"}
    of = f"onnxruntime of {wrong}"
    assert failed == {of, f"onnxruntime against {of}"}
    assert verify(growing, **RUN, cases=["short"], against="eager").passed


def test_a_layer_of_others_is_another_side(tiny, tmp_path) -> None:
    ours, other = tiny(), tmp_path / "layer.onnx"
    shutil.copy(tiny("portable").model, other)
    cases = ["3x7, past 0", "1x7, past 1"]
    report = verify(ours, **RUN, cases=cases, against=other)
    assert report.passed, report.problems
    apart = [x for x in report.rows if x.runtime == f"onnxruntime against onnxruntime of {other}"]
    assert {(row.case, row.output) for row in apart} >= {(x, "attention_output") for x in cases}
    with pytest.raises(InputError, match="its cache is growing, that of the artifact fixed"):
        verify(tiny(cache="fixed"), **RUN, against=other)


def test_what_the_model_does_not_take_is_refused(growing, file, tmp_path) -> None:
    for by, held in ((1_000, r"1\d+"), (-1_000, r"-9\d+")):
        beyond = changed(file, tmp_path / "beyond.npz", "short/inputs/input_ids", by)
        with pytest.raises(InputError, match=f"holds {held}; the model knows tokens from 0 to 63"):
            verify(growing, **RUN, replay=beyond)
    np.savez(tmp_path / "part.npz", input_ids=np.ones((1, 3), np.int64))
    with pytest.raises(InputError, match="is missing"):
        verify(growing, **RUN, replay=tmp_path / "part.npz")

"""Calls in files: recorded, replayed, compared with another runtime, artifact or recording."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from rope_export import Artifact, verify
from rope_export.errors import InputError, UnavailableError
from rope_export.parity import Report
from rope_export.parity.metrics import METRICS

CASES = ["3x7, past 0", "1x7, past 1", "3x2, past 9, positions drawn"]


@pytest.fixture(scope="module")
def artifact(tiny) -> Artifact:
    return tiny()


@pytest.fixture(scope="module")
def file(artifact, tmp_path_factory) -> Path:
    """Three calls as onnxruntime and eager made them."""
    path = tmp_path_factory.mktemp("recording") / "calls.npz"
    assert verify(artifact, runtimes=["onnxruntime"], cases=CASES, record=path).passed
    return path


def plain(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def changed(file: Path, out: Path, key: str, by: float) -> Path:
    """The recording with one number of one array changed."""
    with np.load(file) as loaded:
        arrays = {name: loaded[name].copy() for name in loaded.files}
    arrays[key].reshape(-1)[-1] += by
    return plain(out, **arrays)


def rows(report: Report, runtime: str) -> dict:
    return {
        (row.case, row.output, row.metric): row for row in report.rows if row.runtime == runtime
    }


def test_a_recording_is_plain_numpy(file) -> None:
    with np.load(file, allow_pickle=False) as loaded:
        assert {name.split("/")[0] for name in loaded.files} == {"rope_export", *CASES}
        hidden = loaded[f"{CASES[0]}/inputs/hidden_states"]
        output = loaded[f"{CASES[0]}/outputs/onnxruntime/attention_output"]
        assert hidden.shape == output.shape == (3, 7, 64)
        assert loaded[f"{CASES[0]}/tolerances/attention_output"].shape == (len(METRICS),)


def test_replayed_calls_have_the_errors_of_the_run_that_recorded_them(artifact, file) -> None:
    once = verify(artifact, runtimes="onnxruntime", cases=CASES)
    again = verify(artifact, runtimes=["onnxruntime"], replay=file)
    assert again.passed
    before = rows(once, "onnxruntime")
    assert rows(again, "onnxruntime") == before
    assert {case for case, _, _ in before} == set(CASES)
    assert any(line.endswith("were compared: 3.") for line in again.left_out)


def test_recorded_outputs_are_judged_and_compared_with_what_runs_now(artifact, file) -> None:
    report = verify(artifact, runtimes=["onnxruntime"], against=file)
    assert report.passed
    recorded = rows(report, f"onnxruntime of {file}")
    now = rows(report, "onnxruntime")
    assert {key: row.error for key, row in recorded.items()} == {
        key: row.error for key, row in now.items()
    }
    apart = rows(report, f"onnxruntime against onnxruntime of {file}")
    assert {row.error for row in apart.values()} == {0.0}
    assert all(row.tolerance > 0 for row in apart.values())


def test_a_recorded_output_that_is_wrong_fails(artifact, file, tmp_path) -> None:
    key = f"{CASES[0]}/outputs/onnxruntime/attention_output"
    wrong = changed(file, tmp_path / "wrong.npz", key, 1e-3)
    report = verify(artifact, runtimes=["onnxruntime"], against=wrong)
    failed = {(r.runtime, r.case, r.output) for r in report.rows if r.status == "failed"}
    of = f"onnxruntime of {wrong}"
    assert failed == {
        (name, CASES[0], "attention_output") for name in (of, f"onnxruntime against {of}")
    }


def test_another_artifact_is_judged_and_compared(artifact, tiny, tmp_path) -> None:
    other = tiny("portable")
    report = verify(artifact, runtimes=["onnxruntime"], cases=CASES[:1], against=other.path)
    assert report.passed
    assert rows(report, f"onnxruntime of {other.path}")
    apart = rows(report, f"onnxruntime against onnxruntime of {other.path}")
    assert len(apart) == 6
    with pytest.raises(InputError, match="has other tensors"):
        verify(artifact, against=tiny(cache="fixed").path)
    values = [helper.make_tensor_value_info(x, onnx.TensorProto.FLOAT, [1]) for x in "xy"]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "g", values[:1], values[1:])
    path = tmp_path / "other.onnx"
    onnx.save(helper.make_model(graph), path)
    with pytest.raises(UnavailableError, match="is matched to hidden_states") as refused:
        verify(artifact, runtimes=["onnxruntime"], against=path)
    assert str(refused.value).count(str(path)) == 1


@pytest.mark.parametrize("runtime", ["eager", "reference"])
def test_another_runtime_is_compared(artifact, runtime) -> None:
    report = verify(artifact, runtimes=["onnxruntime"], cases=CASES[:1], against=runtime)
    assert report.passed
    assert len(rows(report, f"onnxruntime against {runtime}")) == 6
    assert bool(rows(report, "reference")) == (runtime == "reference")


def test_evidence_is_about_whole_runs_alone(artifact, file, tmp_path) -> None:
    copy = Artifact.open(shutil.copytree(artifact.path, tmp_path / "copy"))
    before = copy.evidence.get("parity")
    verify(copy, runtimes=["onnxruntime"], cases=CASES[:1])
    verify(copy, runtimes=["onnxruntime"], replay=file)
    assert copy.evidence.get("parity") == before


def test_a_plain_file_is_one_call(artifact, file, tmp_path) -> None:
    with np.load(file) as loaded:
        inputs = {
            name.rpartition("/")[2]: loaded[name]
            for name in loaded.files
            if name.startswith(f"{CASES[1]}/inputs/")
        }
        output = {
            name.rpartition("/")[2]: loaded[name]
            for name in loaded.files
            if name.startswith(f"{CASES[1]}/outputs/onnxruntime/")
        }
    call = plain(tmp_path / "call.npz", **inputs)
    both = plain(tmp_path / "both.npz", **inputs, **output)
    outputs = plain(tmp_path / "outputs.npz", **output)
    once = verify(artifact, runtimes=["onnxruntime"], replay=call)
    assert {row.case for row in once.rows if row.runtime == "onnxruntime"} == {"recorded call"}
    for report in (
        verify(artifact, runtimes=["onnxruntime"], against=both),
        verify(artifact, runtimes=["onnxruntime"], replay=call, against=outputs),
    ):
        assert report.passed
        assert any("against recorded of" in row.runtime for row in report.rows)
    with pytest.raises(InputError, match="give those with `replay`"):
        verify(artifact, against=outputs)
    with pytest.raises(InputError, match="'another' is no tensor"):
        verify(artifact, replay=plain(tmp_path / "x.npz", another=np.zeros(1)))
    endless = inputs["hidden_states"].copy()
    endless[0, -1, 3] = np.inf
    with pytest.raises(InputError, match="'hidden_states' holds numbers that are not finite"):
        verify(artifact, replay=plain(tmp_path / "inf.npz", **inputs | {"hidden_states": endless}))
    del inputs["past_key"]
    less = plain(tmp_path / "less.npz", **inputs)
    with pytest.raises(InputError, match="'past_key' is missing"):
        verify(artifact, replay=less)


def test_rows_of_a_fixed_cache_are_replayed(tiny, tmp_path) -> None:
    """In bfloat16, which numpy's files do not know."""
    artifact = tiny(cache="fixed", dtype="bfloat16", lowering="standard")
    cases = ["3x5, past 0, 0, 9"]
    file = tmp_path / "calls.npz"
    once = verify(artifact, runtimes=["reference"], cases=cases, record=file)
    again = verify(artifact, runtimes=["reference"], replay=file)
    assert once.passed
    assert rows(again, "reference") == rows(once, "reference")


def test_two_recordings_are_compared_without_a_reference(file, tmp_path) -> None:
    report = verify(file, against=file)
    assert report.passed
    assert report.weights == "unproven"
    assert any("no reference" in line for line in report.left_out)
    key = f"{CASES[0]}/outputs/onnxruntime/attention_output"
    wrong = changed(file, tmp_path / "wrong.npz", key, 1e-3)
    failed = {(r.case, r.output) for r in verify(wrong, against=file).rows if r.status == "failed"}
    assert failed == {(CASES[0], "attention_output")}
    with np.load(file) as loaded:
        arrays = {name: loaded[name] for name in loaded.files if not name.endswith("/present_key")}
        one = {name: x for name, x in arrays.items() if name.startswith(CASES[0])}
    less = plain(tmp_path / "less.npz", **one)
    for report in (verify(less, against=file), verify(file, against=less)):
        failed = {(r.output, r.metric) for r in report.rows if r.status == "failed"}
        assert failed == {("present_key", "shape or dtype")}
        assert any(line.startswith("2 calls are not in") for line in report.left_out)
    other = changed(file, tmp_path / "other.npz", f"{CASES[0]}/inputs/hidden_states", 1.0)
    with pytest.raises(InputError, match="hidden_states is not that of"):
        verify(other, against=file)
    with pytest.raises(InputError, match="give the artifact first"):
        verify(file)
    for option in ({"layer": 0}, {"seed": 3}, {"large": True}, {"maps": {"x": "y"}}):
        (name,) = option
        with pytest.raises(InputError, match=f"`{name}`=.* is a recording"):
            verify(file, against=file, **option)


def test_files_without_tolerances_have_that_of_their_longest_axis(tmp_path) -> None:
    """2 u sqrt(K) for each side; K is 100 here and u 2^-24."""
    stream = np.random.default_rng(0)
    value = stream.standard_normal((3, 100)).astype(np.float32)
    paths = []
    for name, factor in (("one", 1.0), ("near", 1 + 30 * 2**-24), ("far", 1 + 60 * 2**-24)):
        key = "call/outputs/ort/y"
        moved = (value * np.float64(factor)).astype(np.float32)
        paths.append(plain(tmp_path / f"{name}.npz", **{key: moved, "call/inputs/x": value}))
    one, near, far = paths
    report = verify(near, against=one)
    assert report.passed
    assert {row.tolerance for row in report.rows if row.metric == METRICS[0]} == {40 * 2**-24}
    assert any("K the longest axis" in line for line in report.left_out)
    assert verify(far, against=one).status == "failed"


def test_calls_without_outputs_on_one_side_are_left_out(tmp_path) -> None:
    value = np.full((2, 3), np.nan, np.float32)  # a cache may hold NaN, and be the same
    inputs, ones = {f"{x}/inputs/x": value for x in "abc"}, np.ones((2, 3), np.float32)
    every = plain(tmp_path / "1.npz", **inputs, **{f"{x}/outputs/ort/y": ones for x in "abc"})
    one = plain(tmp_path / "2.npz", **inputs, **{"a/outputs/ort/y": ones})
    for report in (verify(every, against=one), verify(one, against=every)):
        assert report.passed
        assert {row.case for row in report.rows} == {"a"}
        line = f"calls without outputs of ort in {one} were not compared: the first is b."
        assert line in report.left_out


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("outputs/ort/y", np.array(["a"]), "holds <U1; arrays are of real numbers or bools"),
        ("outputs/ort/y", np.array([1j]), "holds complex128; arrays are of real numbers"),
        ("outputs/ort/y", np.zeros(2, "V3"), r"holds \|V3; arrays are of real numbers"),
        ("tolerances/y", np.ones(3), r"tolerances/y holds \(3,\) numbers, not one for each of"),
    ],
    ids=["text", "complex", "bytes", "tolerances"],
)
def test_what_is_no_call_is_refused(tmp_path, part: str, value: np.ndarray, message: str) -> None:
    arrays = {"call/inputs/x": np.ones(1), "call/outputs/ort/y": np.ones(1), f"call/{part}": value}
    path = plain(tmp_path / "calls.npz", **arrays)
    with pytest.raises(InputError, match=message):
        verify(path, against=path)


def test_polygraphy_reads_and_is_read(artifact, file, tmp_path) -> None:
    """Its own library writes the files."""
    pytest.importorskip("polygraphy", reason="Polygraphy is not installed")
    from polygraphy.comparator import IterationResult, RunResults
    from polygraphy.json import save_json

    calls, results = [], []
    with np.load(file) as loaded:
        for case in CASES:
            names = [name for name in loaded.files if name.startswith(f"{case}/")]
            calls.append({n.split("/")[2]: loaded[n] for n in names if "/inputs/" in n})
            outputs = {n.split("/")[3]: loaded[n] for n in names if "/outputs/onnxruntime/" in n}
            results.append(IterationResult(outputs=outputs))
    save_json(calls, str(tmp_path / "inputs.json"))
    run = RunResults()
    run.append(("onnxrt-runner-N0-11/26/26-04:00:37", results))
    run.save(str(tmp_path / "outputs.json"))
    report = verify(
        artifact,
        runtimes=["onnxruntime"],
        replay=tmp_path / "inputs.json",
        against=tmp_path / "outputs.json",
    )
    assert report.passed
    apart = [row for row in report.rows if "against onnxrt-runner-N0 of" in row.runtime]
    assert {row.case for row in apart} == {"call 1", "call 2", "call 3"}
    assert {row.error for row in apart} == {0.0}
    (tmp_path / "other.json").write_text(json.dumps({"lst": [1]}))
    with pytest.raises(InputError, match="is not JSON that Polygraphy saved"):
        verify(artifact, replay=tmp_path / "other.json")


def test_what_cannot_be_is_refused_before_anything_runs(artifact, file, tmp_path) -> None:
    with pytest.raises(InputError, match="is no folder of an artifact"):
        verify(artifact, against="nothing")
    with pytest.raises(InputError, match=r"ends in \.npz"):
        verify(artifact, record=tmp_path / "calls.json")
    (tmp_path / "mine.npz").write_bytes(b"something else")
    with pytest.raises(InputError, match="is not a recording of ours"):
        verify(artifact, record=tmp_path / "mine.npz")
    with pytest.raises(InputError, match=r"is no \.npz file"):
        verify(artifact, replay=tmp_path / "mine.npz")
    with pytest.raises(InputError, match="is not there"):
        verify(artifact, replay=tmp_path / "none.npz")
    damaged = tmp_path / "damaged.npz"
    np.savez_compressed(damaged, hidden_states=np.arange(4096.0))
    contents = bytearray(damaged.read_bytes())
    for junk in (b"x", b"\0"):  # of which zlib, and numpy's own reader, tell in kinds of their own
        contents[200:400] = junk * 200
        damaged.write_bytes(contents)
        with pytest.raises(InputError, match="'hidden_states' cannot be read"):
            verify(artifact, replay=damaged)
    with pytest.raises(InputError, match=r"`case`='1x8': there is no such case. Like it are: "):
        verify(artifact, cases=["1x8"])

"""Sweeps: every cell judged once, whatever stops the run, and one report of all."""

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import SimpleNamespace

import pytest

from rope_export.artifacts import swap
from rope_export.cli import run
from rope_export.cli.sweep import _commands
from rope_export.errors import RopeExportError
from rope_export.jobs import Store, code_digest
from rope_export.jobs.cluster import Cluster
from rope_export.jobs.local import Processes
from rope_export.parity import Report, Row
from rope_export.parity.report.cells import SweptRow
from rope_export.parity.report.junit import as_junit
from rope_export.reading.verdict import Reading
from rope_export.sweep import Plan, judging, planned, read_matrix, sweep, sweeping
from rope_export.sweep.cell import Cell, Export
from rope_export.sweep.judging import Result, judged, result_of
from rope_export.sweep.merging import merged
from tests.support.machines import Machines

ROOT = Path(__file__).parents[2]

MATRIX = """
sources = ["tiny.json"]
lowerings = ["standard", "ort"]
caches = ["none"]
weights = ["plain", "int4"]
runtimes = ["onnxruntime", "reference"]
[[exclude]]
lowering = "ort"
weights = "int4"
[[exclude]]
lowering = "standard"
weights = "plain"
runtime = "reference"
"""


@pytest.fixture
def matrix(tmp_path: Path, tiny_config: Path) -> Path:
    (tmp_path / "tiny.json").write_text(tiny_config.read_text())
    (tmp_path / "matrix.toml").write_text(MATRIX)
    return tmp_path / "matrix.toml"


def full(*arguments: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.usefixtures("short_prompts")
def test_a_sweep_goes_on_and_its_report_counts_what_was_compared(
    matrix: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = matrix.parent
    forms = {name: folder / f"report.{name}" for name in ("html", "xml", "md")}
    words = ["sweep", str(matrix), "--out", str(folder / "out"), "--jobs", "1", "--keep"]
    files = ["--report", forms["html"], "--junit", forms["xml"], "--markdown", forms["md"]]
    assert run([*words, *map(str, files)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("passed: 2 cells of 2 artifacts, 0 failed, 1 skipped, 2 refused; ")
    assert "skipped: 1 cells, 1 of them: the file has operators of onnxruntime's own" in printed
    assert "refused: 2 cells, 2 of them: lowering 'standard' cannot have weights" in printed

    tests = list(ElementTree.parse(forms["xml"]).iter("testcase"))
    assert len(tests) == 5
    assert sum(test.find("skipped") is not None for test in tests) == 3
    assert "tiny layer 0, ort, none, float32" in forms["html"].read_text()
    assert "2 cells of 2 artifacts" in forms["md"].read_text()
    kept = folder / "out" / "artifacts" / "tiny-layer-0-ort-none-float32"
    assert (kept / "manifest.json").is_file()

    # A matrix with one more runtime repeats nothing; what is done takes no process.
    monkeypatch.setattr(sweeping, "judged", None)
    assert run([*words, "--json"]) == 0
    cells = json.loads(capsys.readouterr().out)["cells"]
    assert [x["status"] for x in cells].count("passed") == 2
    assert all(x["seconds"] > 0 for x in cells if x["status"] == "passed")

    # What cannot be written costs a file, not the verdict.
    monkeypatch.setattr(swap, "write", full)
    assert run([*words, "--markdown", str(folder / "new.md")]) == 4
    found = capsys.readouterr()
    assert found.out.startswith("passed: 2 cells of 2 artifacts")
    assert found.out.endswith("rope-export sweep --all shows every artifact.\n")
    assert "a report was not written: No space left on device." in found.err


def test_a_dry_run_shows_the_cells_and_makes_nothing(
    matrix: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["sweep", str(matrix), "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        "tiny layer 0, standard, none, float32: onnxruntime",
        "tiny layer 0, ort, none, float32: onnxruntime, reference",
    ]
    assert lines[2].startswith("refused: tiny layer 0, standard, none, float32, int4: lowering")
    assert lines[3] == "3 cells of 2 artifacts; 2 cells refused."
    assert sorted(x.name for x in matrix.parent.iterdir()) == ["matrix.toml", "tiny.json"]


def test_reasons_name_keys_of_the_matrix(matrix: Path, capsys: pytest.CaptureFixture[str]) -> None:
    matrix.write_text("sources = ['tiny.json']\nweights = ['int4']\nblock_size = 7")
    for form in ([], ["--json"]):
        assert run(["sweep", str(matrix), "--dry-run", *form]) == 0
        printed = capsys.readouterr().out
        assert "block_size=7" in printed
        assert "`" not in printed


def test_each_row_has_a_command_that_compares_it_again(matrix: Path) -> None:
    [export, *_] = plan_of(matrix).exports
    parameters = {"path": matrix, "out": "out", "ray": None}
    command = _commands(SimpleNamespace(params=parameters), plan_of(matrix))

    def of(runtime: str, case: str) -> str:
        facts = vars(ROW) | {"runtime": runtime, "case": f"{export.title}: {case}"}
        return command(SweptRow(**facts, artifact=export.title, within=case))

    make = export.command("build/artifact")
    assert make.startswith("rope-export export ")
    verify = "rope-export verify build/artifact"
    assert of("reference", "1x4") == f"{make} && {verify} --case 1x4 --runtime reference"
    assert of("file", "weights in the file") == f"{make} && {verify}"
    assert of("tensorrt", "1x4") == (
        f"{make} && rope-export build build/artifact --out build/engine --engine tensorrt && "
        "rope-export verify build/engine --case 1x4 --runtime tensorrt"
    )
    assert command(None) == f"rope-export sweep {matrix} --out out --fresh"


def test_a_process_elsewhere_gets_the_whole_path(
    matrix: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(matrix.parent)
    export = dataclasses.replace(EXPORT, path="tiny.json")
    keys = {Cell(export=export, runtime="onnxruntime"): "key"}
    call = sweeping._call(export, ["onnxruntime"], keys, None, False)
    assert call.options["export"]["path"] == str(matrix.parent / "tiny.json")
    assert sweeping._whole("owner/name") == "owner/name"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "--out is missing"),
        (["--out", "x", "--jobs", "0"], "--jobs 0"),
        (["--out", "x", "--jobs", "2", "--ray", "auto"], "--jobs 2 and --ray auto"),
        (["--out", "{matrix}"], "is a file"),
    ],
)
def test_options_that_cannot_be_are_refused(
    matrix: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    given = [x.format(matrix=matrix) for x in options]
    assert run(["sweep", str(matrix), *given]) == 2
    assert words in capsys.readouterr().err


def plan_of(matrix: Path) -> Plan:
    return planned(read_matrix(matrix))


ROW = Row(
    case="1x4, past 0",
    seed=0,
    runtime="onnxruntime",
    output="attention_output",
    metric="relative L2",
    error=1e-7,
    eager_error=1e-7,
    tolerance=1e-6,
    status="passed",
)
BAD = dataclasses.replace(ROW, error=1e-3, status="failed", case="1x4, past 2")
EXPORT = Export(
    name="tiny", path="tiny.json", layer=0, lowering="ort", cache="none", dtype="float32"
)


def report(*rows: Row, reading: str = "proven") -> Report:
    return Report(weights="proven", rows=list(rows), reading=Reading(status=reading))


def test_what_one_runtime_gets_wrong_is_not_another_ones_failure() -> None:
    both = report(ROW, BAD, dataclasses.replace(ROW, runtime="reference"))
    runtimes = ["onnxruntime", "reference"]
    results = {Cell(export=EXPORT, runtime=x): result_of(both, x, runtimes) for x in runtimes}
    assert [x.status for x in results.values()] == ["failed", "passed"]
    whole = merged(results, {})
    assert (whole.status, whole.cells.counts()) == ("failed", "2 cells of 1 artifacts, 1 failed")
    [failed] = [row for row in whole.rows if row.status == "failed"]
    assert failed.case == "tiny layer 0, ort, none, float32: 1x4, past 2"
    tests = list(
        ElementTree.fromstring(as_junit(whole, "m", lambda row: row.within)).iter("failure")
    )
    assert [x.text.splitlines()[-1] for x in tests] == ["1x4, past 2"]


@pytest.mark.parametrize("runtime", ["eager", "file"])
def test_what_is_wrong_on_every_runtime_is_told_of_each_cell(runtime: str) -> None:
    runtimes = ["onnxruntime", "reference"]
    both = report(ROW, dataclasses.replace(ROW, runtime="reference"))
    both.rows.append(dataclasses.replace(BAD, runtime=runtime))
    results = {Cell(export=EXPORT, runtime=x): result_of(both, x, runtimes) for x in runtimes}
    root = ElementTree.fromstring(as_junit(merged(results, {}), "m", lambda row: row.runtime))
    assert [x.text.splitlines()[-1] for x in root.iter("failure")] == [runtime, runtime]


@pytest.mark.parametrize(
    ("reason", "lasting"), [(None, False), ("the file has TensorScatter", True)]
)
def test_a_runtime_that_did_not_start_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, reason: str | None, lasting: bool
) -> None:
    """A browser without a display, say; but not what the runtime never runs."""
    found = report(ROW)
    found.skipped.append({"runtime": "web", "reason": "Chromium did not start"})
    monkeypatch.setattr(judging, "verify", lambda *_, **__: found)
    web = SimpleNamespace(unavailable=lambda artifact: reason)
    monkeypatch.setattr(judging, "find_runtime", lambda name: web)
    results = judging._verified(None, ["onnxruntime", "web"], 0, "tiny.json")
    assert [x.status for x in results.values()] == ["passed", "skipped"]
    assert [x.lasting for x in results.values()] == [True, lasting]


def test_a_reading_that_differs_fails_the_cell_and_a_crash_fails_the_sweep() -> None:
    cell = Cell(export=EXPORT, runtime="onnxruntime")
    other = Cell(export=EXPORT, runtime="reference")
    wrong = result_of(report(ROW, reading="failed"), "onnxruntime", ["onnxruntime"])
    assert merged({cell: wrong}, {}).status == "failed"
    right = result_of(report(ROW), "onnxruntime", ["onnxruntime"])
    assert merged({cell: right}, {}).status == "passed"
    crashed = merged({cell: right}, {other: "MemoryError: no"})
    assert crashed.status == "failed"
    assert "crashed: tiny layer 0, ort, none, float32 on reference: MemoryError: no." in list(
        crashed.cells.short_lines()
    )


def test_refused_and_skipped_cells_alone_are_nothing_compared() -> None:
    cell = Cell(export=EXPORT, runtime="onnxruntime")
    for status in ("refused", "skipped"):
        found = merged({cell: Result(status=status, reason="why")}, {})
        assert found.status == "nothing compared"
        assert found.cells.counts().startswith("0 cells of 0 artifacts")


def test_a_source_of_other_contents_is_another_result(matrix: Path) -> None:
    store = Store(matrix.parent / "store")
    before = sweeping.cell_keys(plan_of(matrix), store)
    again = sweeping.cell_keys(plan_of(matrix), store)
    assert list(before.values()) == list(again.values())
    config = json.loads((matrix.parent / "tiny.json").read_text())
    (matrix.parent / "tiny.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    after = sweeping.cell_keys(plan_of(matrix), store)
    assert not set(before.values()) & set(after.values())


def test_what_only_an_export_refuses_is_a_refused_cell(matrix: Path) -> None:
    """A padding token beyond the vocabulary: transformers builds no such model."""
    source = matrix.parent / "tiny.json"
    config = json.loads(source.read_text()) | {"vocab_size": 64, "pad_token_id": 64}
    export = dataclasses.replace(EXPORT, layer=None, path=str(source), cache="growing")
    runtimes = ["onnxruntime", "reference"]
    results = judged(export.to_json(), runtimes, code_digest(), json.dumps(config))
    assert {x.status for x in results.values()} == {"refused"}
    assert all("transformers cannot build LlamaForCausalLM" in x.reason for x in results.values())
    with pytest.raises(RopeExportError, match="install the same on all machines"):
        judged(export.to_json(), runtimes, "other code", json.dumps(config))


LARGER = """
sources = ["tiny.json"]
layers = "all"
lowerings = ["portable", "standard", "ort"]
caches = ["none", "growing"]
"""


def statuses(report: Report) -> list[tuple[str, ...]]:
    """The report without times."""
    return [tuple(str(v) for k, v in vars(x).items() if k != "seconds") for x in report.cells.every]


@pytest.mark.long
def test_a_killed_sweep_goes_on_and_repeats_nothing(matrix: Path) -> None:
    """Killed with all its processes, once some of its cells are done."""
    matrix.write_text(LARGER)
    out = matrix.parent / "out"
    words = [sys.executable, "-m", "rope_export", "sweep", str(matrix), "--out", str(out)]
    words += ["--jobs", "2", "--json"]
    process = subprocess.Popen(words, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL)
    while not (done := finished(out)):
        assert process.poll() is None
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = finished(out)
    ended = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0
    assert f"note: {len(done)} cells were done by an earlier run." in ended.stderr
    assert len(json.loads(ended.stdout)["cells"]) == 12
    assert {name: finished(out)[name] for name in done} == done


def finished(out: Path) -> dict[str, int]:
    """The results of cells that are there, with the time at which each was written."""
    results = out / "results"
    return {
        path.name: path.stat().st_mtime_ns
        for path in (results.glob("*.json") if results.is_dir() else ())
        if path.read_text().startswith("{")
    }


@pytest.mark.long
def test_a_cluster_that_loses_a_machine_gives_the_report_of_a_local_run(
    matrix: Path, cluster: Machines
) -> None:
    """A Ray cluster of three workers, one of which is killed while it computes."""
    matrix.write_text(LARGER)
    plan = plan_of(matrix)
    local = sweep(plan, out=matrix.parent / "local", pool=Processes(2)).report
    assert local.passed
    killed: list[str] = []

    class Watched(Cluster):
        def answers(self, calls, store):
            for answer in super().answers(calls, store):
                if not killed:
                    killed.append(answer.name)
                    cluster.kill_one()
                yield answer

    found = sweep(plan, out=matrix.parent / "ray", pool=Watched(cluster.address)).report
    assert killed
    assert statuses(found) == statuses(local)
    assert found.rows == local.rows

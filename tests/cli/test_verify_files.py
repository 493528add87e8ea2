"""The files that `verify` writes and reads: reports, a baseline, and recordings."""

import errno
import json
import re
import shlex
import sys
from html import unescape
from pathlib import Path
from xml.etree import ElementTree

import pytest

from rope_export import Artifact
from rope_export.cli import run

CASES = ("3x7, past 0", "1x7, past 1")


@pytest.fixture(scope="module")
def artifact(tiny) -> Artifact:
    return tiny()


@pytest.fixture(scope="module")
def files(artifact, tmp_path_factory) -> Path:
    """A folder with a report of each kind, and what --json printed."""
    folder = tmp_path_factory.mktemp("files")
    words = ["verify", str(artifact.path), "--json", "--record", str(folder / "calls.npz")]
    for case in CASES:
        words += ["--case", case]
    for option, suffix in (("report", "html"), ("junit", "xml"), ("markdown", "md")):
        words += [f"--{option}", str(folder / f"report.{suffix}")]
    with pytest.MonkeyPatch.context() as patch:
        printed: list[str] = []
        patch.setattr("builtins.print", lambda *text, **_: printed.extend(map(str, text)))
        assert run(words) == 0
    (folder / "baseline.json").write_text("".join(printed))
    return folder


def test_a_missing_model_is_named_as_a_file(tmp_path, capsys) -> None:
    assert run(["verify", str(tmp_path / "none.onnx"), "--source", str(tmp_path)]) == 2
    assert capsys.readouterr().err.endswith("none.onnx: there is no such file.\n")


def test_every_file_has_the_rows_of_the_run(files) -> None:
    rows = json.loads((files / "baseline.json").read_text())["rows"]
    assert {row["case"] for row in rows} == {*CASES, "weights in the file"}
    tests = ElementTree.parse(files / "report.xml").getroot()
    counts = {name: int(tests.get(name)) for name in ("tests", "skipped", "failures")}
    assert (counts["tests"] - counts["skipped"], counts["failures"]) == (len(rows), 0)
    page = (files / "report.html").read_text()
    assert f"{len(rows)} comparisons in 5 cases" in page
    assert "Where in the tensor" in page
    assert "Error over position: attention_output" in page
    assert "opset" in page
    assert (files / "report.md").read_text().startswith("<!-- rope_export verify -->\n### ✅")
    assert sorted(path.suffix for path in files.iterdir()) == [
        ".html", ".json", ".md", ".npz", ".xml",
    ]  # fmt: skip


def test_the_command_of_a_row_compares_it_again(files, capsys) -> None:
    page = unescape((files / "report.html").read_text())
    (command,) = re.findall(rf"<pre>(rope-export .*'{CASES[0]}')</pre>", page.replace(
        " --runtime onnxruntime", ""
    ))[:1]  # fmt: skip
    assert run([*shlex.split(command)[1:], "--runtime", "onnxruntime", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)["rows"]
    before = json.loads((files / "baseline.json").read_text())["rows"]
    assert again == [row for row in before if row["case"] != CASES[1]]


def test_errors_that_have_grown_are_status_1(artifact, files, tmp_path, capsys) -> None:
    words = ["verify", str(artifact.path), "--case", CASES[0], "--baseline"]
    assert run([*words, str(files / "baseline.json")]) == 0
    assert "rows compared, 0 grew beyond 2 times" in capsys.readouterr().out
    recorded = json.loads((files / "baseline.json").read_text())
    one = next(row for row in recorded["rows"] if row["runtime"] == "onnxruntime")
    one["error"] /= 10
    smaller = tmp_path / "smaller.json"
    smaller.write_text(json.dumps(recorded))
    assert run([*words, str(smaller)]) == 1
    assert f"grown most: {one['case']}, {one['output']}" in capsys.readouterr().out
    assert run([*words, str(smaller), "--factor", "20"]) == 0


def test_a_report_is_replaced_and_nothing_else_is(artifact, files, tmp_path, capsys) -> None:
    words = ["verify", str(artifact.path), "--case", CASES[0], "--markdown"]
    report, mine = tmp_path / "report.md", tmp_path / "mine.md"
    report.write_bytes((files / "report.md").read_bytes())
    assert run([*words, str(report)]) == 0
    assert report.read_bytes() != (files / "report.md").read_bytes()
    mine.write_text("# my own words")
    assert run([*words, str(mine)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert mine.read_text() == "# my own words"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.md", "report.md"]


@pytest.mark.parametrize(
    ("option", "file", "package", "extra"),
    [
        ("--report", "x.html", "jinja2", "report"),
        ("--report", "x.html", "matplotlib.figure", "report"),
        ("--junit", "x.xml", "junitparser", "report"),
        ("--replay", "x.json", "polygraphy", "polygraphy"),
    ],
)
def test_a_missing_package_is_a_line_that_names_the_extra(
    artifact, tmp_path, monkeypatch, capsys, option, file, package, extra
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / "x.json").write_text("[]")
    assert run(["verify", str(artifact.path), option, str(tmp_path / file)]) == 3
    error = capsys.readouterr().err
    assert f"pip install 'rope_export[{extra}]'" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--report", "{tmp}/none/x.html"], "there is no folder"),
        (["--report", "{tmp}"], "its name ends in .html"),
        (["--report", "{tmp}/folder.html"], "is no file"),
        (["--junit", "{tmp}/x.html"], "its name ends in .xml"),
        (["--markdown", "{tmp}/x.txt"], "its name ends in .md"),
        (["--factor", "0.5"], "--factor 0.5: is a number from 1 up"),
        (["--seed", "-1"], "--seed -1: it must be 0 or more"),
        (["--factor", "3"], "--factor 3: is how much errors may grow; give a --baseline"),
        (["--map", "x=a", "--map", "x=b"], "--map x=b: x is a already"),
        (["--record", "{tmp}/x.json"], "--record {tmp}/x.json: its name ends in .npz"),
        (["--baseline", "{tmp}/none.json"], "is not there"),
    ],
)
def test_what_cannot_be_written_or_read_is_a_line_before_the_work(
    tmp_path, capsys, words, reason
) -> None:
    """Before the artifact is looked at: there is none."""
    (tmp_path / "folder.html").mkdir()
    filled = [word.format(tmp=tmp_path) for word in words]
    assert run(["verify", str(tmp_path / "no artifact"), *filled]) == 2
    error = capsys.readouterr().err
    assert reason.format(tmp=tmp_path) in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--layer", "1"], "--layer 1: {path} holds layer 0"),
        (["--spec", "config.json"], "--spec: {path} tells itself what it computes"),
        (["--map", "input_ids=tokens"], "--map: {path} tells itself"),
        (["--decoder"], "--decoder: {path} holds one attention layer"),
        (["--adapter", "adapter"], "--adapter adapter: none was merged into {path}"),
    ],
)
def test_what_an_artifact_tells_itself_is_not_told_otherwise(
    artifact, capsys, words, reason
) -> None:
    assert run(["verify", str(artifact.path), *words]) == 2
    error = capsys.readouterr().err
    assert reason.format(path=artifact.path) in error
    assert error.count("\n") == 1


def test_a_baseline_of_another_dtype_is_refused(files, tiny, capsys) -> None:
    other = tiny(dtype="float16")
    words = ["verify", str(other.path), "--baseline", str(files / "baseline.json")]
    assert run(words) == 2
    assert "another artifact, with dtype float32, not float16" in capsys.readouterr().err


def test_a_report_that_cannot_be_written_costs_no_verdict(
    artifact, tmp_path, capsys, monkeypatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("rope_export.artifacts.swap.write", full)
    words = ["verify", str(artifact.path), "--case", CASES[0], "--json"]
    assert run([*words, "--markdown", str(tmp_path / "x.md")]) == 4
    printed = capsys.readouterr()
    assert json.loads(printed.out)["status"] == "passed"
    assert printed.err == "rope-export: a report was not written: No space left on device.\n"
    assert not list(tmp_path.iterdir())

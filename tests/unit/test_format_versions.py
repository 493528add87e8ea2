"""Folders that earlier versions wrote open, run and verify as if they were written now.

The samples were written by the last version of format 1: `growing` and `int4` by `export` (the
second with --tune), `engine` by `build` with tensorrt-rtx 1.7, then verified. They were made from
`config.json`. What is expected is read from the files themselves.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from rope_export import Artifact, open_session, verify
from rope_export.artifacts import upgrade
from rope_export.artifacts.folder import hashes
from rope_export.artifacts.saving import check_target
from rope_export.engines.plan import Engine
from rope_export.errors import ArtifactError
from rope_export.parity.cases import Case
from rope_export.parity.subjects import layer as layer_subject
from tests.unit.test_safety_files import contents

SAMPLES = Path(__file__).parents[1] / "support" / "samples" / "v1"
FOLDERS = ("growing", "int4", "engine", "engine/artifact")


@pytest.fixture
def sample(tmp_path):
    """A copy of a sample, for a test to write into."""
    return lambda name: Path(shutil.copytree(SAMPLES / name, tmp_path / name))


def inputs(manifest, sequence: int = 3, past: int = 4) -> dict[str, np.ndarray]:
    sizes = {"batch": 2, "sequence": sequence, "past": past, "capacity": 16}
    draw = np.random.default_rng(0)
    feeds = {
        t.name: draw.standard_normal(t.sized(sizes)).astype(t.dtype)
        for t in manifest.inputs
        if t.dtype.startswith("float")
    }
    feeds["position_ids"] = np.arange(past, past + sequence)[None].repeat(2, 0)
    if manifest.interface.lengths:
        feeds[manifest.interface.lengths] = np.array([past, past])
    return feeds


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_of_version_1_opens_and_runs(name) -> None:
    before = contents(SAMPLES)
    opened = Artifact.open(SAMPLES / name)
    stored = json.loads((opened.artifact.path / "manifest.json").read_text())
    assert stored["format_version"] == 1
    assert isinstance(opened, Engine) == (name == "engine")
    manifest = opened.manifest
    assert (manifest.cache, manifest.padding) == (stored["cache"], stored["padding"])
    assert [t.name for t in manifest.inputs] == [t["name"] for t in stored["inputs"]]
    assert [list(t.shape) for t in manifest.outputs] == [t["shape"] for t in stored["outputs"]]
    assert hashes(manifest) == {n: f["sha256"] for n, f in stored["files"].items()}
    with open_session(SAMPLES / name) as session, open_session(opened, "eager") as eager:
        feeds = inputs(manifest)
        outputs, expected = session.run(feeds), eager.run(feeds)
    # int4's kernel rounds activations to int8; the others differ by roundings of their dtype.
    atol = {"int4": 0.1, "growing": 1e-5}.get(name, 1e-2)
    np.testing.assert_allclose(
        outputs["attention_output"], expected["attention_output"], rtol=0, atol=atol
    )
    assert contents(SAMPLES) == before


def test_the_interface_of_version_1_is_by_its_names() -> None:
    growing = Artifact.open(SAMPLES / "growing").manifest.interface
    assert [(pair.input, pair.output, pair.axis) for pair in growing.caches] == [
        ("past_key", "present_key", 2),
        ("past_value", "present_value", 2),
    ]
    assert (growing.main_input, growing.main_output) == ("hidden_states", "attention_output")
    assert (growing.positions, growing.lengths, growing.mask) == ("position_ids", None, None)
    fixed = Artifact.open(SAMPLES / "int4").manifest.interface
    assert [(pair.input, pair.output) for pair in fixed.caches] == [
        ("key_cache", "key_cache_out"),
        ("value_cache", "value_cache_out"),
    ]
    assert fixed.lengths == "cache_lengths"


@pytest.mark.parametrize("name", ["growing", "engine"])
def test_a_folder_of_version_1_verifies(name, sample, monkeypatch) -> None:
    """Proven from its source as well; the verdict replaces the one that it had. Of few cases: what
    they are compared by is not what changed."""
    few = [Case(batch=2, sequence=3, past=0), Case(batch=1, sequence=1, past=7)]
    monkeypatch.setattr(layer_subject, "regular_cases", lambda *_, **__: few)
    monkeypatch.setattr(layer_subject, "layer_properties", lambda *_: [])
    folder = sample(name)
    report = verify(folder, source=SAMPLES / "config.json", runtimes=["onnxruntime"])
    assert (report.status, report.weights, report.notes) == ("passed", "proven", [])
    kept = json.loads((folder / "evidence.json").read_text())
    assert kept["format_version"] == 2
    assert kept["parity"]["rows"] == len(report.rows)
    assert {"tolerance", "error"} <= kept["parity"]["worst"][0].keys()
    assert kept["files"] == json.loads((SAMPLES / name / "evidence.json").read_text())["files"]


def test_evidence_of_version_1_has_the_names_of_today() -> None:
    stored = json.loads((SAMPLES / "int4" / "evidence.json").read_text())
    evidence = Artifact.open(SAMPLES / "int4").evidence
    assert evidence["tuning"] == stored["tuning"]
    assert evidence["source"] == stored["source"]
    parity = evidence["parity"]
    assert parity["quantization_error"] == stored["parity"]["loss"]
    assert [row["tolerance"] for row in parity["worst"]] == [
        row["budget"] for row in stored["parity"]["worst"]
    ]
    assert "budget" not in json.dumps(evidence)
    assert '"loss"' not in json.dumps(evidence)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_of_version_1_may_be_written_over(name, sample) -> None:
    """It is one of ours: nothing of a user's is lost. Not so if anything in it is a user's."""
    folder = sample(name)
    kind = type(Artifact.open(folder))
    assert check_target(folder, kind) == folder
    (folder / "evidence.json").write_text('{"mine": 1}')
    with pytest.raises(ArtifactError, match="would be lost"):
        check_target(folder, kind)


def test_what_is_written_now_reads_back_the_same(tiny) -> None:
    """A manifest in memory, of a new export, is that of the file, whose text is always the same."""
    artifact = tiny()
    stored = json.loads((artifact.path / "manifest.json").read_text())
    assert (stored["format_version"], stored["kind"]) == (2, "attention")
    assert Artifact.open(artifact.path) == artifact
    assert stored["interface"]["caches"] == [
        {"input": "past_key", "output": "present_key", "axis": 2},
        {"input": "past_value", "output": "present_value", "axis": 2},
    ]
    names = ("main_input", "main_output", "positions", "lengths", "mask")
    assert [stored["interface"][name] for name in names] == [
        "hidden_states",
        "attention_output",
        "position_ids",
        None,
        None,
    ]
    assert (artifact.path / "manifest.json").read_text() == json.dumps(stored, indent=1) + "\n"


def test_facts_that_version_1_once_lacked() -> None:
    """The first manifests had no such keys; stale slots are then what every operator stands."""
    path = SAMPLES / "int4" / "manifest.json"
    facts = json.loads(path.read_text())
    for name in ("needs", "quantization", "stale_slots", "first_position"):
        del facts[name]
    upgraded = upgrade.manifest(facts, path)
    assert upgraded["stale_slots"] == "finite"
    assert (upgraded["needs"], upgraded["quantization"], upgraded["first_position"]) == (
        {},
        None,
        None,
    )


@pytest.mark.parametrize("version", [0, 3, 2.0, "2", None, True, [2]])
@pytest.mark.parametrize("file", ["manifest.json", "evidence.json"])
def test_other_versions_are_refused_by_name(version, file, sample) -> None:
    folder = sample("growing")
    facts = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**facts, "format_version": version}))
    with pytest.raises(ArtifactError, match=rf"{file}: format_version=.* reads 1 to 2"):
        Artifact.open(folder).evidence  # noqa: B018

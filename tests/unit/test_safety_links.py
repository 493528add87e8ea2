"""Artifacts in a cache of links: what a link leads to is read within the cache and nowhere else."""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rope_export import Artifact, export, open_session, verify
from rope_export.cli import run
from rope_export.errors import ArtifactError
from rope_export.exporter import onnx_file
from tests.cli.test_cli import refused
from tests.unit.test_exporter import call
from tests.unit.test_safety_files import contents

REVISION = "0123456789abcdef" * 2


@pytest.fixture(scope="module")
def large(tiny_config, tmp_path_factory) -> Path:
    """An artifact whose weights lie in a file of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_file, "EXTERNAL_ABOVE", 1_000)
        out = tmp_path_factory.mktemp("large") / "artifact"
        return export(tiny_config, out=out, lowering="standard").path


def cached(artifact: Path, cache: Path, monkeypatch, inside: str = "") -> Path:
    """The artifact as huggingface_hub puts a download into its cache; the folder it returns.

    Its own function makes the links, so that the layout is the hub client's.
    """
    from huggingface_hub.file_download import _create_symlink, repo_folder_name

    repository = cache / repo_folder_name(repo_id="org/layer", repo_type="model")
    snapshot = repository / "snapshots" / REVISION / inside
    (repository / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for file in artifact.iterdir():
        blob = repository / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copyfile(file, blob)
        _create_symlink(str(blob), str(snapshot / file.name), new_blob=True)
        assert (snapshot / file.name).is_symlink()
    return snapshot


@pytest.mark.parametrize("inside", ["", "onnx/layer0"])
@pytest.mark.parametrize("size", ["small", "large"])
def test_an_artifact_in_the_hubs_cache_opens(
    size, inside, tiny, large, runtime, tmp_path, monkeypatch, capsys
) -> None:
    source = large if size == "large" else tiny().path
    folder = cached(source, tmp_path, monkeypatch, inside)
    blobs = contents(tmp_path / "models--org--layer" / "blobs")
    inputs = call(2, 3, 4)
    with runtime.open(folder) as session, runtime.open(source) as known:
        for name, value in known.run(inputs).items():
            np.testing.assert_array_equal(session.run(inputs)[name], value)
    assert Artifact.open(folder).record(parity={"status": "passed"}) is None
    assert Artifact.open(folder).evidence["parity"] == {"status": "passed"}
    assert contents(tmp_path / "models--org--layer" / "blobs") == blobs  # not through the link
    assert run(["inspect", str(folder), "--json"]) == 0


@pytest.mark.usefixtures("short_prompts")
def test_one_in_the_hubs_cache_verifies(large, tmp_path, monkeypatch) -> None:
    folder = cached(large, tmp_path, monkeypatch)
    blobs = contents(tmp_path / "models--org--layer" / "blobs")
    report = verify(folder)
    assert report.passed
    assert not report.notes
    assert contents(tmp_path / "models--org--layer" / "blobs") == blobs


def elsewhere(folder: Path, name: str) -> None:
    """The link leads out of the cache."""
    outside = folder.parents[3] / "secret"
    shutil.copyfile(folder / name, outside)
    (folder / name).unlink()
    (folder / name).symlink_to(outside)


def two_folders(folder: Path, name: str) -> None:
    """Model and data lie apart."""
    apart = folder.parent / "apart"
    apart.mkdir()
    shutil.copyfile(folder / name, apart / name)
    (folder / name).unlink()
    (folder / name).symlink_to(apart / name)


def nowhere(folder: Path, name: str) -> None:
    (folder / name).unlink()
    (folder / name).symlink_to("nowhere")


def loop(folder: Path, name: str) -> None:
    (folder / name).unlink()
    (folder / name).symlink_to(name)


def a_folder(folder: Path, name: str) -> None:
    (folder / name).unlink()
    (folder / name).symlink_to(folder.parents[1] / "blobs")


def a_pipe(folder: Path, name: str) -> None:
    (folder / name).unlink()
    pipe = folder.parents[1] / "blobs" / "pipe"
    os.mkfifo(pipe)
    (folder / name).symlink_to(pipe)


def a_device(folder: Path, name: str) -> None:
    (folder / name).unlink()
    (folder / name).symlink_to("/dev/zero")


ALL = ("model.onnx", "model.onnx.data", "manifest.json")
REFUSED: dict[str, tuple[Callable[[Path, str], None], tuple[str, ...]]] = {
    "leads out": (elsewhere, ALL),
    "two folders": (two_folders, ALL[:2]),
    "leads nowhere": (nowhere, ALL),
    "leads to itself": (loop, ALL),
    "a folder": (a_folder, ALL),
    "a pipe": (a_pipe, ALL),
    "a device": (a_device, ALL),
}


@pytest.mark.parametrize("way", REFUSED)
def test_other_links_are_refused_unread(way, large, tmp_path, monkeypatch, capsys) -> None:
    """`verify` and `open_session` agree, and nobody opens what the link leads to."""
    change, names = REFUSED[way]
    real, opened = os.open, []
    for name in names:
        folder = cached(large, tmp_path / name, monkeypatch)
        change(folder, name)
        with monkeypatch.context() as patch:
            patch.setattr(os, "open", lambda path, *x: (opened.append(path), real(path, *x))[1])
            with pytest.raises(ArtifactError, match=name):
                open_session(folder)
            assert name in refused(capsys, "verify", str(folder))
        there = {"secret", "blobs", "pipe", "zero"} if way != "two folders" else set()
        assert not there & {os.path.basename(path) for path in opened}


def test_an_artifact_of_links_is_not_replaced(large, tmp_path, monkeypatch, tiny_config, capsys):
    folder = cached(large, tmp_path, monkeypatch)
    before = contents(tmp_path)
    told = refused(capsys, "export", str(tiny_config), "--out", str(folder))
    assert "a link and would be lost" in told
    assert contents(tmp_path) == before


def test_links_within_the_parent_folder(tiny, tmp_path) -> None:
    """A store beside the artifact, as other caches have it."""
    artifact = Path(shutil.copytree(tiny().path, tmp_path / "artifact"))
    (tmp_path / "store").mkdir()
    for name in ("model.onnx", "manifest.json"):
        (artifact / name).rename(tmp_path / "store" / name)
        (artifact / name).symlink_to(tmp_path / "store" / name)
    with open_session(artifact) as session:
        session.run(call(1, 1, 0))


def test_weights_that_the_manifest_does_not_list_are_refused(large, tmp_path, capsys) -> None:
    """They were loaded without a hash: the model names the file, the manifest does not."""
    import json

    artifact = Path(shutil.copytree(large, tmp_path / "artifact"))
    facts = json.loads((artifact / "manifest.json").read_text())
    del facts["files"]["model.onnx.data"]
    (artifact / "manifest.json").write_text(json.dumps(facts))
    assert "model.onnx.data" in refused(capsys, "inspect", str(artifact))

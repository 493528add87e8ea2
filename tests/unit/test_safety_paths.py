"""Paths that a user may give: they work, or are refused in one line before any work is done."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rope_export import Artifact, open_session, paths
from rope_export.artifacts.saving import check_target
from rope_export.cli import run
from rope_export.engines import Engine
from rope_export.errors import InputError
from tests.cli.test_cli import refused
from tests.unit.test_exporter import call
from tests.unit.test_safety_files import contents, save_again

NOT_UTF8 = os.fsdecode(b"layer\xff0")


@pytest.fixture
def inside(tmp_path: Path, monkeypatch) -> Path:
    """A folder to be in, with an artifact's name left free."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def dangling_parent(folder: Path) -> str:
    (folder / "gone").symlink_to(folder / "nowhere")
    return "gone/a/layer0"  # with one slash it would be a hub's


def loop(folder: Path) -> str:
    (folder / "loop").symlink_to("loop")
    return "loop"


def through_a_loop(folder: Path) -> str:
    return loop(folder) + "/layer0"


def file(folder: Path) -> str:
    (folder / "file").write_text("mine")
    return "file"


def below_a_file(folder: Path) -> str:
    return file(folder) + "/layer0"


def link_to_a_folder(folder: Path) -> str:
    (folder / "target").mkdir()
    (folder / "link").symlink_to("target")
    return "link"


def dangling(folder: Path) -> str:
    (folder / "link").symlink_to("nowhere")
    return "link"


REFUSED: dict[str, Callable[[Path], str]] = {
    "the current folder": lambda folder: ".",
    "it with a slash": lambda folder: "./",
    "its parent": lambda folder: "..",
    "a way back to it": lambda folder: "a/..",
    "itself by name": lambda folder: "../here",
    "the root": lambda folder: "/",
    "nothing": lambda folder: "",
    "a name of 256 bytes": lambda folder: "n" * 256,
    "a parent of 256 bytes": lambda folder: "n" * 256 + "/layer0",
    "a path of 5,000 bytes": lambda folder: "n/" * 2500 + "layer0",
    "not UTF-8": lambda folder: NOT_UTF8,
    "below what is not UTF-8": lambda folder: NOT_UTF8 + "/layer0",
    "a link to a folder": link_to_a_folder,
    "a link that leads nowhere": dangling,
    "a link to itself": loop,
    "below a link to itself": through_a_loop,
    "below a link that leads nowhere": dangling_parent,
    "a file": file,
    "below a file": below_a_file,
    "a device": lambda folder: "/dev/null",
}


@pytest.mark.parametrize("way", REFUSED)
def test_out_that_cannot_be_a_folder_is_refused_first(
    way, inside, tiny_config, capsys, monkeypatch
) -> None:
    given = REFUSED[way](inside)
    before = contents(inside.parent)
    monkeypatch.setattr(
        "rope_export.exporter.pipeline.open_model", lambda *_, **__: pytest.fail("read")
    )
    refused(capsys, "export", str(tiny_config), "--out", given)
    assert contents(inside.parent) == before
    with pytest.raises(InputError):
        check_target(Path(given), Engine)
    assert contents(inside.parent) == before


def test_a_zero_byte_is_refused(tiny_config, tmp_path) -> None:
    for name in ("a\0b", "\ud800"):
        with pytest.raises(InputError):
            check_target(tmp_path / name, Artifact)
        with pytest.raises(InputError):
            Artifact.open(tmp_path / name)
        with pytest.raises(InputError):
            paths.source(name)


WORKING: dict[str, Callable[[Path], str]] = {
    "a name of 255 bytes": lambda folder: "n" * 255,
    "255 bytes of letters that have two": lambda folder: "ä" * 127,
    "a slash at its end": lambda folder: "layer0/",
    "a way round": lambda folder: "../here/./layer0",
    "a parent to be made": lambda folder: "a/b/layer0",
    "a way back to what is not there": lambda folder: "a/../layer0",
    "a space and a quote": lambda folder: "my 'layer'",
    "a dash": lambda folder: "./-layer",
    "a dot": lambda folder: ".layer",
}


@pytest.mark.parametrize("way", WORKING)
def test_other_paths_work_twice(way, inside, tiny) -> None:
    given = Path(WORKING[way](inside))
    for mark in ("first", "second"):
        found = save_again(tiny(), given, mark).path
        assert found == given or ".." in given.parts
        assert Artifact.open(found).evidence["source"] == mark
        assert not list(inside.rglob(".rope_export*"))


def test_a_parent_that_is_a_link_is_followed(inside, tiny) -> None:
    (inside / "disk").mkdir()
    (inside / "link").symlink_to("disk")
    save_again(tiny(), Path("link/layer0"), "one")
    save_again(tiny(), Path("link/layer0"), "two")
    assert os.listdir(inside / "disk") == ["layer0"]
    assert (inside / "link").is_symlink()


READ: dict[str, Callable[[Path, Path], str]] = {
    "the current folder": lambda folder, artifact: ".",
    "its name": lambda folder, artifact: "../artifact",
    "a link": lambda folder, artifact: linked(artifact, "link"),
    "a link to a link": lambda folder, artifact: linked(Path(linked(artifact, "a")), "b"),
    "not UTF-8": lambda folder, artifact: moved(artifact, NOT_UTF8),
    "255 bytes": lambda folder, artifact: moved(artifact, "n" * 255),
}


def linked(artifact: Path, name: str) -> str:
    (artifact.parent / name).symlink_to(artifact)
    return str(artifact.parent / name)


def moved(artifact: Path, name: str) -> str:
    return str(shutil.copytree(artifact, artifact.parent / name))


@pytest.mark.parametrize("way", READ)
def test_an_artifact_is_read_by_any_path(way, tiny, tmp_path, monkeypatch, capsys) -> None:
    artifact = Path(shutil.copytree(tiny().path, tmp_path / "artifact"))
    monkeypatch.chdir(artifact)
    given = READ[way](tmp_path, artifact)
    inputs = call(1, 2, 0)
    with open_session(given) as session, open_session(tiny()) as known:
        for name, value in known.run(inputs).items():
            np.testing.assert_array_equal(session.run(inputs)[name], value)
    assert run(["inspect", given, "--json"]) == 0
    assert Artifact.open(given).record(parity={"status": "passed"}) is None
    assert Artifact.open(given).evidence["parity"] == {"status": "passed"}


UNREADABLE: dict[str, Callable[[Path], str]] = {
    name: REFUSED[name]
    for name in REFUSED
    if name not in ("a device", "a way back to it", "it with a slash", "itself by name")
}


@pytest.mark.parametrize("way", UNREADABLE)
@pytest.mark.parametrize("command", ["verify", "inspect", "bench", "build", "export"])
def test_a_path_without_anything_is_one_line(way, command, inside, capsys) -> None:
    given = UNREADABLE[way](inside)
    before = contents(inside.parent)
    out = ["--out", "out"] if command in ("build", "export") else []
    refused(capsys, command, given, *out)
    assert contents(inside.parent) == before


def test_special_files_are_not_waited_for(tiny, tmp_path, capsys) -> None:
    """Opening a pipe that nobody writes to would wait for ever."""
    for name in ("model.onnx", "manifest.json", "evidence.json"):
        artifact = Path(shutil.copytree(tiny().path, tmp_path / name))
        (artifact / name).unlink()
        os.mkfifo(artifact / name)
        refused(capsys, "inspect", str(artifact))

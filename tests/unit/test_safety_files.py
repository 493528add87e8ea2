"""What belongs to a user is never deleted, moved or renamed, whatever it is called."""

import json
import os
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from rope_export import Artifact, RopeExportError
from rope_export.artifacts.artifact import save
from rope_export.artifacts.folder import kinds
from rope_export.artifacts.saving import check_target
from rope_export.cli import run
from rope_export.engines import build_cache
from rope_export.errors import InputError
from tests.cli.test_cli import refused
from tests.support.killed import killed_everywhere
from tests.support.plans import built


def contents(folder: Path) -> dict[str, bytes | str]:
    """Everything below a folder: a file's bytes, or what else it is."""
    found: dict[str, bytes | str] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"link to {os.readlink(path)}"
        elif path.is_dir():
            found[name] = "folder"
        else:
            found[name] = path.read_bytes() if path.is_file() else "special"
    return found


@pytest.fixture
def artifact(tiny, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny().path, tmp_path / "artifact"))


def manifest_of(**changes: object) -> Callable[[Path], None]:
    """Changes manifest.json; a value of None takes the fact out."""

    def change(folder: Path) -> None:
        path = folder / "manifest.json"
        facts = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({k: v for k, v in facts.items() if v is not None}))

    return change


def of_a_browser(folder: Path) -> None:
    """A web app's manifest.json is a file of that name as well; so is an extension's."""
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps({"name": "My app", "icons": []}))


def of_another_program(folder: Path) -> None:
    of_a_browser(folder)
    (folder / "manifest.json").write_text(json.dumps({"format_version": 1, "kind": "attention"}))
    (folder / "model.onnx").write_bytes(b"a detector, trained for weeks")


def written(name: str, text: str = "mine") -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)

    return write


def linked(name: str) -> Callable[[Path], None]:
    def link(folder: Path) -> None:
        if (folder / name).exists():
            (folder / name).rename(folder.parent / "elsewhere")
        (folder / name).symlink_to(folder.parent / "elsewhere")

    return link


USERS = {
    "another program's manifest": of_a_browser,
    "another program's model": of_another_program,
    "a manifest that is no JSON": written("manifest.json", "port: 80"),
    "another kind": manifest_of(kind="decoder"),
    "no kind": manifest_of(kind=None),
    "a newer format": manifest_of(format_version=3),
    "half of a manifest": manifest_of(weights=None),
    "a version that is true": manifest_of(format_version=True),
    "notes": written("notes.txt"),
    "a copy of the model": written("model.onnx.bak"),
    "a subfolder": written("runs/1.json"),
    "a model of one's own": written("model.onnx"),
    "weights of one's own": written("model.onnx.data"),
    "figures of one's own": written("evidence.json", '{"mine": 1}'),
    "figures that are no JSON": written("evidence.json"),
    "a linked model": linked("model.onnx"),
    "a linked manifest": linked("manifest.json"),
    "a folder called model.onnx.data": written("model.onnx.data/x"),
    "a hidden file": written(".gitkeep"),
    "an old name of ours": written(".evidence.json.ab12"),
}


@pytest.mark.parametrize("thing", USERS)
def test_out_that_holds_something_of_the_users_is_kept(
    thing, artifact, tiny_config, tmp_path, capsys, monkeypatch
) -> None:
    USERS[thing](artifact)
    before = contents(tmp_path)
    monkeypatch.setattr(
        "rope_export.exporter.pipeline.open_model", lambda *_, **__: pytest.fail("read")
    )
    refused(capsys, "export", str(tiny_config), "--out", str(artifact))
    assert contents(tmp_path) == before
    for command in ("verify", "inspect"):  # reading ones least of all
        run([command, str(artifact / ".."), "--json"])
        run(["inspect", str(artifact), "--json"])
    assert contents(tmp_path) == before


BESIDE = (".artifact.old", ".artifact.new", ".artifact.partial-x", ".artifact", ".rope_export-a")


@pytest.mark.parametrize("there", [True, False], ids=["an artifact", "nothing"])
def test_what_lies_beside_is_kept(there, tiny, tmp_path) -> None:
    """Folders of a user whose names the writing once used."""
    out = tmp_path / "artifact"
    if there:
        shutil.copytree(tiny().path, out)
    for name in BESIDE:
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.tex").write_text("years of work")
    users = {name: x for name, x in contents(tmp_path).items() if name.startswith(".")}
    assert run(["inspect", str(out), "--json"]) == (0 if there else 2)
    assert {n: x for n, x in contents(tmp_path).items() if n.startswith(".")} == users
    assert out.exists() == there
    save_again(tiny(), out, "new")
    assert {n: x for n, x in contents(tmp_path).items() if n.startswith(".")} == users
    assert sorted(x for x in os.listdir(tmp_path) if x not in BESIDE) == ["artifact"]


@pytest.mark.parametrize("name", [".artifact.old", ".artifact.new"])
def test_a_reader_renames_nothing_of_a_users(name, tiny, tmp_path, capsys) -> None:
    """A user keeps an artifact under a name like that, and asks for one that is gone."""
    shutil.copytree(tiny().path, tmp_path / name)
    before = contents(tmp_path)
    for command in ("inspect", "verify"):
        refused(capsys, command, str(tmp_path / "artifact"))
    assert contents(tmp_path) == before


def save_again(source: Artifact, out: Path, mark: str) -> Artifact:
    """What `export` does last, without tracing."""

    def write_model(folder: Path) -> None:
        shutil.copyfile(source.model, folder / "model.onnx")

    return save(out, source.manifest, write_model, {"source": mark})


def test_a_killed_export_leaves_the_old_or_the_new_and_blocks_nothing(tiny, tmp_path) -> None:
    source, out = tiny(), tmp_path / "artifact"
    deaths = 0
    for _ in killed_everywhere(
        lambda: save_again(source, out, "old"), lambda: save_again(source, out, "new")
    ):
        deaths += 1
        assert Artifact.open(out).evidence["source"] in ("old", "new")
    assert deaths > 40
    save_again(source, out, "last")
    assert os.listdir(tmp_path) == ["artifact"]
    assert sorted(os.listdir(out)) == ["evidence.json", "manifest.json", "model.onnx"]


def test_a_killed_verify_blocks_nothing(tiny, tmp_path) -> None:
    """Evidence that was being written stays as it was, and what is left is no file of a user's."""
    source, out = tiny(), tmp_path / "artifact"

    def before() -> None:
        save_again(source, out, "somewhere").record(parity={"status": "passed"})

    deaths = 0
    for _ in killed_everywhere(before, lambda: Artifact.open(out).record(parity={"status": "new"})):
        deaths += 1
        assert Artifact.open(out).evidence["parity"]["status"] in ("passed", "new")
        check_target(out, Artifact)
        assert sorted(os.listdir(out)) == ["evidence.json", "manifest.json", "model.onnx"]
    assert deaths > 10


def damaged_entry(folder: Path) -> None:
    (folder / "engine.plan").write_bytes(b"\0")


ENTRIES: dict[str, tuple[Callable[[Path], None], bool]] = {
    "a whole entry": (lambda folder: None, True),
    "a damaged plan": (damaged_entry, True),
    "notes beside it": (written("notes.txt"), False),
    "facts of somebody else": (written("facts.json", '{"born": 1879}'), False),
    "facts that are no JSON": (written("facts.json"), False),
}


@pytest.mark.parametrize("thing", ENTRIES)
def test_the_build_cache_replaces_its_own_entries_alone(thing, tmp_path) -> None:
    change, ours = ENTRIES[thing]
    entry = built(b"plan")
    build_cache.put(tmp_path, "key", entry)
    change(tmp_path / "key")
    before = contents(tmp_path)
    other = built(b"other")
    if ours:
        build_cache.put(tmp_path, "key", other)
        assert build_cache.get(tmp_path, "key") == other
        assert os.listdir(tmp_path) == ["key"]
        return
    with pytest.raises(FileExistsError):
        build_cache.put(tmp_path, "key", other)
    assert contents(tmp_path) == before


def test_a_picture_of_ones_own_is_kept(tmp_path) -> None:
    pytest.importorskip("matplotlib")
    from rope_export.bench import plot
    from rope_export.bench.shapes import Shape

    shapes = [Shape(batch=1, sequence=1, past=16)]
    for name in ("thesis.png", "thesis.svg"):
        (tmp_path / name).write_text("mine")
        with pytest.raises(InputError, match="no picture of a benchmark"):
            plot.check_target(tmp_path / name, shapes)
    plot.check_target(tmp_path / "new.png", shapes)
    (tmp_path / "new.png").symlink_to(tmp_path / "thesis.png")
    with pytest.raises(InputError, match="no picture of a benchmark"):
        plot.check_target(tmp_path / "new.png", shapes)


def fuzzed(artifact: Path, seed: int) -> None:
    """An artifact with something of a user's in it, at random: refused whole, or not touched."""
    draw = random.Random(seed)
    ways = list(USERS.values())
    for change in draw.sample(ways, draw.randint(1, 2)):
        try:
            change(artifact)
        except (OSError, ValueError):
            continue  # two that do not go together
    before = contents(artifact.parent)
    for kind in kinds().values():
        with pytest.raises(RopeExportError):
            check_target(artifact, kind)
    with suppress(RopeExportError):
        Artifact.open(artifact)
    assert contents(artifact.parent) == before, f"seed {seed}"


@pytest.mark.parametrize("seeds", [range(30), pytest.param(range(30, 600), marks=pytest.mark.long)])
def test_fuzz_of_users_things_in_an_artifact(seeds, tiny, tmp_path) -> None:
    for seed in seeds:
        folder = tmp_path / str(seed)
        shutil.copytree(tiny().path, folder / "artifact")
        fuzzed(folder / "artifact", seed)
        shutil.rmtree(folder)

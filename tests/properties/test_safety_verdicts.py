"""A verdict names what it judged: what is hashed is what is loaded, and evidence counts for the
files whose hashes it names."""

import functools
import json
import os
import random
import resource
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from rope_export import Artifact, export, open_session, verify
from rope_export.artifacts import contents as contents_of_files
from rope_export.artifacts.artifact import save
from rope_export.artifacts.folder import hashes, model_hashes
from rope_export.bench.proof import _evidence
from rope_export.cli import run
from rope_export.engines import plan
from rope_export.engines.plan import EngineManifest, Options
from rope_export.engines.profiles import Range
from rope_export.errors import ArtifactError, RopeExportError
from rope_export.exporter import onnx_file
from rope_export.interface import TensorType
from rope_export.parity.cases import regular_cases
from rope_export.parity.subjects import layer as layer_subject
from tests.support.killed import killed_everywhere
from tests.support.plans import FUSION, NETWORK
from tests.unit.test_exporter import call
from tests.unit.test_safety_files import contents, manifest_of, save_again, written

INPUTS = call(1, 2, 0)

OURS = ("format_version", "kind", "files")
"""What the first evidence did not have."""


Pair = tuple[Artifact, Artifact]


@pytest.fixture(scope="session")
def pairs(tiny_config, tmp_path_factory) -> Callable[[str], Pair]:
    """Pairs by where their weights lie, each made once."""

    @functools.cache
    def make(place: str) -> Pair:
        folder = tmp_path_factory.mktemp("pair")
        with pytest.MonkeyPatch.context() as patch:
            if place == "large":
                patch.setattr(onnx_file, "EXTERNAL_ABOVE", 1_000)
            one, other = (
                export(tiny_config, out=folder / str(seed), seed=seed, lowering="portable")
                for seed in (1, 2)
            )
        assert len(one.manifest.files) == (2 if place == "large" else 1)
        return one, other

    return make


@pytest.fixture(params=["small", "large"])
def pair(request, pairs) -> Pair:
    """Two artifacts of one layer with different weights, inside the model or in a file beside."""
    return pairs(request.param)


def answer(session) -> bytes:
    return session.run(INPUTS)["attention_output"].tobytes()


def known(pair: tuple[Artifact, Artifact]) -> dict[str, bytes]:
    """What each of the two answers, by the hashes of its files."""
    found = {}
    for artifact in pair:
        with open_session(artifact) as session:
            found[json.dumps(hashes(session.manifest), sort_keys=True)] = answer(session)
    assert len(set(found.values())) == 2
    return found


def put(artifact: Artifact, out: Path) -> None:
    """Save a copy of an artifact to `out`, as `export` does."""

    def write_model(folder: Path) -> None:
        for name in artifact.manifest.files:
            shutil.copyfile(artifact.path / name, folder / name)

    save(out, artifact.manifest, write_model, {"source": "somewhere"})


def move(artifact: Artifact, out: Path) -> None:
    """As a user does: the old folder is moved away and a copy moved in."""
    fresh, old = out.with_name("fresh"), out.with_name("aside")
    shutil.copytree(artifact.path, fresh)
    os.rename(out, old)
    os.rename(fresh, out)
    shutil.rmtree(old)


def in_place(artifact: Artifact, out: Path) -> None:
    """Each file written over, one after the other."""
    for path in artifact.path.iterdir():
        shutil.copyfile(path, out / path.name)


@pytest.mark.parametrize("swap", [put, move, in_place])
@pytest.mark.parametrize("opens", [60, pytest.param(1500, marks=pytest.mark.long)])
def test_a_session_is_of_the_manifest_that_it_shows(swap, opens, pair, tmp_path) -> None:
    """Under a stress of swaps: the old one or the new one, and of our own swaps always one."""
    out, right = tmp_path / "artifact", known(pair)
    put(pair[0], out)
    stop = threading.Event()

    def swaps() -> None:
        at = 0
        while not stop.is_set():
            at += 1
            swap(pair[at % 2], out)

    writer = threading.Thread(target=swaps)
    writer.start()
    wrong, found = [], set()
    try:
        for _ in range(opens):
            try:
                with open_session(out) as session:
                    files = json.dumps(hashes(session.manifest), sort_keys=True)
                    found.add(files)
                    if answer(session) != right[files]:
                        wrong.append(files)
            except RopeExportError:
                assert swap is not put
    finally:
        stop.set()
        writer.join()
    assert not wrong
    assert swap is not put or len(found) == 2


def swapped_before_loading(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[], None]
) -> Iterator[None]:
    """Once the next session is made, after its files were hashed, `change` happens first."""
    real = onnxruntime.InferenceSession

    def made(*given: object, **options: object) -> object:
        change()
        return real(*given, **options)

    with monkeypatch.context() as patch:
        patch.setattr(onnxruntime, "InferenceSession", made)
        yield


@pytest.mark.parametrize("swap", [put, move])
def test_what_was_hashed_is_what_is_loaded(swap, pair, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(contents_of_files, "MAPPED_ABOVE", 0)
    out, right = tmp_path / "artifact", known(pair)
    put(pair[0], out)
    for _ in swapped_before_loading(monkeypatch, lambda: swap(pair[1], out)):
        with open_session(out, threads=3) as session:
            files = json.dumps(hashes(session.manifest), sort_keys=True)
            assert session.manifest.files == pair[0].manifest.files
            assert answer(session) == right[files]


def test_weights_that_are_written_over_while_they_load_are_refused(
    pair, tmp_path, monkeypatch
) -> None:
    if len(pair[0].manifest.files) == 1:
        pytest.skip("they lie in the model, which was read")
    monkeypatch.setattr(contents_of_files, "MAPPED_ABOVE", 0)
    out = tmp_path / "artifact"
    put(pair[0], out)

    def change() -> None:
        with (out / "model.onnx.data").open("r+b") as file:
            file.write(b"\1\2\3\4")

    artifact = Artifact.open(out)
    for _ in swapped_before_loading(monkeypatch, change):
        with pytest.raises(ArtifactError, match="changed while it was read"):
            open_session(artifact, threads=2)


def test_sessions_share_what_has_the_same_hashes_alone(pair, tmp_path) -> None:
    out, right = tmp_path / "artifact", list(known(pair).values())
    put(pair[0], out)
    with open_session(out) as first:
        put(pair[1], out)
        with open_session(out) as second, open_session(pair[0]) as third:
            assert second.runner._inner is not first.runner._inner
            assert third.runner._inner is first.runner._inner
            assert [answer(x) for x in (first, second, third)] == [right[0], right[1], right[0]]


def test_an_open_artifact_takes_no_other_files(pair, runtime, tmp_path) -> None:
    out = tmp_path / "artifact"
    put(pair[0], out)
    opened = Artifact.open(out)
    put(pair[1], out)
    with pytest.raises(ArtifactError, match=r"replaced.*Open it again"):
        open_session(opened, runtime.name)
    with pytest.raises(ArtifactError, match="replaced"):
        verify(opened)
    assert "parity" not in Artifact.open(out).evidence


def test_an_artifact_replaced_while_it_is_verified(pair, tmp_path, monkeypatch) -> None:
    """The verdict is about the old one, is told, and is not written on the new one."""
    out, calls = tmp_path / "artifact", []
    monkeypatch.setattr(
        layer_subject, "regular_cases", lambda *x, **y: list(regular_cases(*x, **y))[:3]
    )
    put(pair[0], out)

    def replace_it(step: str, done: float) -> None:
        if not calls:
            put(pair[1], out)
        calls.append(step)

    report = verify(out, progress=replace_it)
    assert report.passed
    assert len(calls) > 3
    (note,) = report.notes
    assert "was replaced" in note
    assert report.to_json()["notes"] == [note]
    assert Artifact.open(out).evidence == {"source": "somewhere"}
    assert Artifact.open(out).manifest.files == pair[1].manifest.files


def test_evidence_of_other_files_counts_for_nothing(pair, tmp_path) -> None:
    out = tmp_path / "artifact"
    put(pair[0], out)
    artifact = Artifact.open(out)
    own = model_hashes(artifact)
    proven = {"runtime": "onnxruntime", "files": own, "error": 0.0}
    assert artifact.record(parity={"status": "passed", "files": own}, proven=proven) is None
    found = _evidence(Artifact.open(out))
    assert found is not None
    assert found.trusted
    evidence = json.loads((out / "evidence.json").read_text())
    assert evidence["files"] == own
    put(pair[1], out)
    for copied in (evidence, {k: v for k, v in evidence.items() if k not in OURS}):
        (out / "evidence.json").write_text(json.dumps(copied))
        assert "parity" not in Artifact.open(out).evidence
        assert _evidence(Artifact.open(out)) is None


def test_recorders_at_once_lose_nothing(tiny, tmp_path) -> None:
    out = tmp_path / "artifact"
    save_again(tiny(), out, "somewhere")
    names = ("tuning", "sweep", "replay", "other")  # those of newer versions are kept as well
    for round_ in range(10):
        threads = [
            threading.Thread(target=Artifact.open(out).record, kwargs={name: {"at": round_}})
            for name in names
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {n: Artifact.open(out).evidence[n]["at"] for n in names} == dict.fromkeys(
            names, round_
        )


def test_a_full_disk_still_gives_the_verdict(tiny, tmp_path) -> None:
    """In a process that may write no byte to any file."""
    out = tmp_path / "artifact"
    save_again(tiny(), out, "somewhere")
    before = contents(out)
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        note = Artifact.open(out).record(parity={"status": "passed"})
        os.write(writes, str(note).encode())
        os._exit(0)
    os.close(writes)
    with os.fdopen(reads, "rb") as pipe:
        note = pipe.read().decode()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert "the verdict is not kept there (File too large)" in note
    assert contents(out) == before


@pytest.mark.parametrize("number", [30, 28, 13], ids=["read-only", "full", "no permission"])
def test_evidence_that_cannot_be_kept_changes_no_status(
    number, tiny, tmp_path, monkeypatch, capsys
) -> None:
    out = tmp_path / "artifact"
    save_again(tiny(), out, "somewhere")

    def fails(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("rope_export.artifacts.swap.write", fails)
    note = Artifact.open(out).record(parity={})
    assert note is not None
    assert os.strerror(number) in note
    if number != 30:
        return
    monkeypatch.setattr(layer_subject, "regular_cases", lambda *_, **__: [])  # soon done
    assert run(["verify", str(out), "--json"]) == 0
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert report["status"] == "passed"
    assert [os.strerror(number) in note for note in report["notes"]] == [True]
    assert printed.err.startswith("rope-export: warning: ")
    assert printed.err.count("\n") == 1


# --------------------------------------------------------------------------------------- engines


@pytest.fixture
def engine(tiny, tmp_path) -> Path:
    """An engine's folder around a plan that no TensorRT made."""
    return save_engine(tiny(), tmp_path / "engine", b"a plan")


def save_engine(artifact: Artifact, out: Path, contents: bytes) -> Path:
    axes = {name: Range(min=1, opt=1, max=2) for name in ("batch", "sequence")}
    tensor = TensorType(name="hidden_states", dtype="float32", shape=("batch", 2, 64))
    facts = EngineManifest(
        engine="tensorrt-rtx",
        version="1.0",
        compute_capabilities=("8.9",),
        gpu=None,
        ranges=(axes,),
        options=Options(),
        inputs=(tensor,),
        outputs=(tensor,),
        network=NETWORK,
        fusion=FUSION,
        model=model_hashes(artifact),
    )
    return plan.save(out, artifact, facts, contents).path


def test_a_plan_that_was_replaced_is_not_loaded(engine, tiny) -> None:
    opened = Artifact.open(engine)
    assert opened.read_plan() == b"a plan"
    save_engine(tiny(), engine, b"another plan")
    with pytest.raises(ArtifactError, match=r"engine\.plan: does not match.*rope-export build"):
        opened.read_plan()
    note = opened.record(numbers={"plan": opened.facts.files["engine.plan"].sha256})
    assert note is not None
    assert "was replaced" in note
    assert Artifact.open(engine).evidence == {"source": tiny().evidence["source"]}


ENGINES: dict[str, Callable[[Path], None]] = {
    "a plan of one's own": written("engine.plan"),
    "notes": written("notes.txt"),
    "notes further in": written("artifact/notes.txt"),
    "a model of one's own": written("artifact/model.onnx"),
    "another kind": manifest_of(kind="attention"),
    "another format": manifest_of(format_version=9),
    "another program's": lambda folder: (folder / "manifest.json").write_text("{}") and None,
    "figures of one's own": written("evidence.json", '{"mine": 1}'),
}


@pytest.mark.parametrize("thing", ENGINES)
def test_an_engine_with_something_of_the_users_is_kept(thing, engine, tiny) -> None:
    ENGINES[thing](engine)
    before = contents(engine.parent)
    with pytest.raises(ArtifactError):
        save_engine(tiny(), engine, b"new")
    assert contents(engine.parent) == before


def test_a_killed_build_leaves_the_old_or_the_new(tiny, tmp_path) -> None:
    out = tmp_path / "engine"
    for _ in killed_everywhere(
        lambda: save_engine(tiny(), out, b"old"), lambda: save_engine(tiny(), out, b"new"), 4
    ):
        assert Artifact.open(out).read_plan() in (b"old", b"new")
    save_engine(tiny(), out, b"last")
    assert os.listdir(tmp_path) == ["engine"]


@pytest.mark.parametrize("above", [0, 1 << 28], ids=["mapped", "read"])
def test_arrays_of_both_layouts_agree(above, pair, runtime, monkeypatch) -> None:
    """Weights inside the model and beside it are read alike by every runtime."""
    monkeypatch.setattr(contents_of_files, "MAPPED_ABOVE", above)
    for artifact in pair:
        with runtime.open(artifact) as session, open_session(artifact) as known:
            expected = known.run(INPUTS)["attention_output"]
            found = session.run(INPUTS)["attention_output"]
        np.testing.assert_allclose(found, expected, rtol=0, atol=64 * 2**-23)


def raised(number: int) -> None:
    """A process that ends itself so far into its work."""
    signal.setitimer(signal.ITIMER_REAL, number / 1000)
    signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))


@pytest.mark.long
@pytest.mark.parametrize("rounds", [150])
def test_processes_that_write_and_die_beside_readers(rounds, pair, tmp_path) -> None:
    """Three writers at a time, killed within a tenth of a second, each in place of the last."""
    out, draw = tmp_path / "artifact", random.Random(0)
    put(pair[0], out)
    known_files = [artifact.manifest.files for artifact in pair]
    children: list[int] = []
    for round_ in range(rounds):
        while len(children) < 3:
            child = os.fork()
            if child == 0:
                raised(draw.randint(1, 100))
                try:
                    for at in range(100):
                        put(pair[(at + round_) % 2], out)
                        Artifact.open(out).record(parity={"status": "passed"})
                except BaseException:
                    os._exit(1)
                os._exit(0)
            draw.random()
            children.append(child)
        for _ in range(4):
            opened = Artifact.open(out)
            assert opened.manifest.files in known_files
            assert opened.evidence.keys() <= {"source", "parity"}
        assert os.WIFSIGNALED(os.waitpid(children.pop(0), 0)[1])
    for child in children:
        os.waitpid(child, 0)
    put(pair[0], out)
    assert os.listdir(tmp_path) == ["artifact"]
    assert sorted(os.listdir(out)) == sorted(
        [*pair[0].manifest.files, "manifest.json", "evidence.json"]
    )

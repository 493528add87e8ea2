"""A folder is replaced as a whole: whenever it stops, the old or the new one is there, and nothing
that somebody else put beside it is touched."""

import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rope_export.artifacts import exchange, swap
from tests.support.killed import killed_everywhere


def fill(text: str):
    def write(folder: Path) -> None:
        for name in ("a", "b"):
            (folder / name).write_text(text)

    return write


def anything(folder: Path) -> None:
    """Every folder may be replaced."""


def no_notes(folder: Path) -> None:
    if (folder / "notes.txt").exists():
        raise PermissionError(f"{folder} has notes")


def state(target: Path) -> set[str]:
    return {(target / name).read_text() for name in ("a", "b")}


def tree(folder: Path) -> dict[str, str]:
    """Everything below a folder: a file's text, or what else it is."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            what = f"link to {os.readlink(path)}"
        else:
            what = "folder" if path.is_dir() else path.read_text()
        found[str(path.relative_to(folder))] = what
    return found


@pytest.fixture
def target(tmp_path: Path) -> Path:
    target = tmp_path / "artifact"
    swap.replace(target, fill("old"), anything)
    return target


@pytest.fixture(params=["in one step", "in two steps"])
def steps(request, monkeypatch) -> str:
    """With the system's exchange of two paths, and as on a file system that has none."""
    if request.param == "in two steps":
        monkeypatch.setattr(exchange, "exchange_paths", lambda *_: False)
    return request.param


def test_killed_at_any_call(tmp_path, steps) -> None:
    target = tmp_path / "artifact"

    def before() -> None:
        swap.replace(target, fill("old"), anything)

    deaths = 0
    for _ in killed_everywhere(before, lambda: swap.replace(target, fill("new"), anything)):
        deaths += 1
        swap.heal(target)  # as every reader does
        assert state(target) in ({"old"}, {"new"})
        swap.replace(target, fill("third"), anything)
        assert state(target) == {"third"}
        assert list(tmp_path.iterdir()) == [target]
    assert deaths > 20


def test_killed_while_it_is_written_for_the_first_time(tmp_path, steps) -> None:
    target = tmp_path / "artifact"

    def before() -> None:
        if target.exists():
            subprocess.run(["rm", "-r", str(target)], check=True)

    for _ in killed_everywhere(before, lambda: swap.replace(target, fill("new"), anything)):
        swap.heal(target)
        assert not target.exists() or state(target) == {"new"}
        swap.replace(target, fill("third"), anything)
        assert list(tmp_path.iterdir()) == [target]


def test_a_killed_writer_of_one_file_leaves_nothing_that_stays(tmp_path) -> None:
    path = tmp_path / "evidence.json"

    def before() -> None:
        swap.write(path, "old")

    for _ in killed_everywhere(before, lambda: swap.write(path, "new")):
        assert path.read_text() in ("old", "new")
        assert [x.name for x in swap.foreign(tmp_path)] == ["evidence.json"]
        swap.clear(tmp_path)
        assert list(tmp_path.iterdir()) == [path]


def test_killed_at_any_time(target) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from pathlib import Path\n"
        "from rope_export.artifacts import swap\n"
        "def fill(text):\n"
        "    return lambda folder: [(folder / n).write_text(text) for n in ('a', 'b')]\n"
        "print('ready', flush=True)\n"
        "n = 0\n"
        "while True:\n"
        "    n += 1; swap.replace(Path(sys.argv[1]), fill(str(n)), lambda folder: None)\n"
    )
    root = str(Path(swap.__file__).parents[2])
    for round_ in range(8):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(target), root], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(0.02 + 0.013 * round_)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        swap.heal(target)
        assert len(state(target)) == 1
    swap.replace(target, fill("last"), anything)
    assert state(target) == {"last"}
    assert list(target.parent.iterdir()) == [target]


def test_a_reader_always_finds_it(target) -> None:
    """With the exchange of two paths there is no moment without the folder."""
    if exchange._system() is None:
        pytest.skip("this system exchanges no paths")
    done = threading.Event()

    def write() -> None:
        for n in range(60):
            swap.replace(target, fill(str(n)), anything)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    looks = 0
    while not done.is_set():
        assert target.is_dir()
        looks += 1
    writer.join()
    assert looks > 60


@pytest.mark.parametrize("locks", ["of the folder", "of a file that stands for it"])
def test_a_writer_that_lives_is_left_alone(locks, target, monkeypatch, tmp_path_factory) -> None:
    if locks != "of the folder":
        monkeypatch.setattr(swap, "fcntl", None)
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("temporary")))
    inside, go_on = threading.Event(), threading.Event()

    def slow(folder: Path) -> None:
        fill("slow")(folder)
        inside.set()
        assert go_on.wait(30)

    writer = threading.Thread(target=swap.replace, args=(target, slow, anything))
    writer.start()
    assert inside.wait(30)
    swap.replace(target, fill("fast"), anything)
    assert state(target) == {"fast"}
    go_on.set()
    writer.join()
    assert state(target) == {"slow"}
    assert list(target.parent.iterdir()) == [target]


def test_a_file_that_stands_for_a_folder_locks_it(tmp_path, monkeypatch) -> None:
    """As on Windows, where a folder cannot be locked itself."""
    monkeypatch.setattr(swap, "fcntl", None)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    with swap.locked(tmp_path), pytest.raises(BlockingIOError), swap.locked(tmp_path, wait=False):
        pytest.fail("locked twice")
    with swap.locked(tmp_path, wait=False):
        pass


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failing_fill_leaves_the_old_and_nothing_else(target, error) -> None:
    def broken(folder: Path) -> None:
        (folder / "a").write_text("half")
        raise error

    with pytest.raises(type(error)):
        swap.replace(target, broken, anything)
    assert state(target) == {"old"}
    assert list(target.parent.iterdir()) == [target]


def test_what_must_not_be_replaced_comes_back(target, steps, monkeypatch) -> None:
    """Also where it came into the folder between the question and the swap."""
    (target / "notes.txt").write_text("mine")
    before = tree(target)
    with pytest.raises(PermissionError, match="notes"):
        swap.replace(target, fill("new"), no_notes)
    assert tree(target) == before
    asked = []

    def late(folder: Path) -> None:
        asked.append(folder)
        if len(asked) > 1:
            no_notes(folder)

    with pytest.raises(PermissionError, match="notes"):
        swap.replace(target, fill("new"), late)
    assert len(asked) == 2
    assert tree(target) == before
    assert list(target.parent.iterdir()) == [target]


def test_write_replaces_one_file_as_a_whole(tmp_path, monkeypatch) -> None:
    path = tmp_path / "evidence.json"
    swap.write(path, "old")

    def broken(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="No space"):
        swap.write(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_is_replaced_and_not_followed(tmp_path) -> None:
    blob = tmp_path / "blob"
    blob.write_text("shared")
    path = tmp_path / "evidence.json"
    path.symlink_to(blob)
    swap.write(path, "new")
    assert (blob.read_text(), path.read_text(), path.is_symlink()) == ("shared", "new", False)


def test_the_longest_names_there_are(tmp_path) -> None:
    target = tmp_path / ("n" * 255)
    for text in ("old", "new"):
        swap.replace(target, fill(text), anything)
        assert state(target) == {text}
    swap.write(target / ("f" * 255), "file")
    assert sorted(path.name[0] for path in target.iterdir()) == ["a", "b", "f"]


def users_things(folder: Path, draw: random.Random) -> Iterator[Callable[[], None]]:
    """Ways in which a user may have things under names that look like ours."""
    token = draw.randbytes(8).hex()
    ours = swap._name(token)
    names = [".artifact.old", ".artifact.new", ".artifact.partial-x1", ".rope_export-mine", ours]
    names += [swap._name(token)[:-1] + "x", ".rope_export-" + "0" * 32, "artifact.bak"]
    name = draw.choice(names)
    place = folder / name
    if os.path.lexists(place):
        return

    def file() -> None:
        place.write_text("mine")

    def link() -> None:
        place.symlink_to(draw.choice(["nowhere", "artifact", "."]))

    def filled(*inside: str) -> Callable[[], None]:
        def make() -> None:
            place.mkdir()
            for one in inside:
                (place / one).parent.mkdir(exist_ok=True)
                (place / one).write_text('{"target": "artifact"}')

        return make

    yield file
    yield link
    yield filled("thesis.tex")
    yield filled("new/thesis.tex", "old/thesis.tex")
    yield filled("owner.json")
    yield filled("owner.json", "new/a", "new/b", "old/a")
    if name != ours:
        yield filled()


def scenario(folder: Path, seed: int) -> None:
    """Some things of a user, some left-overs of ours at any stage, then reading and writing."""
    draw = random.Random(seed)
    target = folder / "artifact"
    swap.replace(target, fill("old"), anything)
    for _ in range(draw.randint(1, 3)):
        ways = list(users_things(folder, draw))
        if ways:
            draw.choice(ways)()
    kept = {n: x for n, x in tree(folder).items() if n.partition("/")[0] != "artifact"}
    for _ in range(draw.randint(0, 2)):
        work = folder / swap._name(draw.randbytes(8).hex())
        stage = draw.randint(0, 5)
        work.mkdir()
        owner = swap.START + b'"artifact"}\n'
        if stage:
            cut = len(owner) if stage > 1 else draw.randint(0, len(owner) - 1)
            (work / swap.OWNER).write_bytes(owner[:cut])
        if stage in (2, 3, 4):
            (work / swap.NEW).mkdir()
            (work / swap.NEW / "a").write_text("left")
        if stage >= 3:
            (work / swap.NEW).mkdir(exist_ok=True)
            fill("left")(work / swap.NEW)
        if stage == 4 and target.exists():
            os.rename(target, work / swap.OLD)
    swap.heal(target)
    assert state(target) in ({"old"}, {"left"})
    check = {n: x for n, x in tree(folder).items() if n in kept}
    assert check == kept, f"seed {seed}: reading touched a user's things"
    swap.replace(target, fill("new"), anything)
    assert state(target) == {"new"}
    after = {n: x for n, x in tree(folder).items() if n.partition("/")[0] != "artifact"}
    assert after == kept, f"seed {seed}: writing touched a user's things"


@pytest.mark.parametrize(
    "seeds", [range(40), pytest.param(range(40, 1500), marks=pytest.mark.long)]
)
def test_what_is_not_ours_stays(tmp_path, seeds) -> None:
    for seed in seeds:
        folder = tmp_path / str(seed)
        folder.mkdir()
        scenario(folder, seed)

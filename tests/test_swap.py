"""A folder is replaced as a whole: whenever it stops, the old or the new one is there."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rope_export import swap


def fill(text: str):
    def write(folder: Path) -> None:
        for name in ("a", "b"):
            (folder / name).write_text(text)

    return write


def state(target: Path) -> set[str]:
    return {(target / name).read_text() for name in ("a", "b")}


@pytest.fixture
def target(tmp_path: Path) -> Path:
    target = tmp_path / "artifact"
    swap.replace(target, fill("old"))
    return target


class Stop(BaseException):
    """The process ends here: nothing after this line runs, cleaning up neither."""


@pytest.mark.parametrize("at", range(1, 4))
def test_stopped_at_any_rename(target, at, monkeypatch) -> None:
    """As a kill would: the renames so far are done, no handler gets to undo anything."""
    renames = []
    rename = os.rename

    def counted(source: object, destination: object) -> None:
        renames.append(destination)
        if len(renames) >= at:
            raise Stop
        rename(source, destination)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", counted)
        patch.setattr(swap, "heal", lambda _: None)
        patch.setattr(swap.shutil, "rmtree", lambda *_, **__: None)
        with pytest.raises(Stop):
            swap.replace(target, fill("new"))
    swap.heal(target)
    assert state(target) in ({"old"}, {"new"})
    swap.replace(target, fill("third"))
    assert state(target) == {"third"}
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failing_fill_leaves_the_old_and_nothing_else(target, error) -> None:
    def broken(folder: Path) -> None:
        (folder / "a").write_text("half")
        raise error

    with pytest.raises(type(error)):
        swap.replace(target, broken)
    assert state(target) == {"old"}
    assert list(target.parent.iterdir()) == [target]


def test_killed_at_any_time(target) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from pathlib import Path\n"
        "from rope_export import swap\n"
        "def fill(text):\n"
        "    return lambda folder: [(folder / n).write_text(text) for n in ('a', 'b')]\n"
        "print('ready', flush=True)\n"
        "n = 0\n"
        "while True:\n"
        "    n += 1; swap.replace(Path(sys.argv[1]), fill(str(n)))\n"
    )
    root = str(Path(swap.__file__).parents[1])
    for round_ in range(8):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(target), root], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.02 + 0.013 * round_)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        swap.heal(target)
        assert len(state(target)) == 1
    swap.replace(target, fill("last"))
    assert state(target) == {"last"}
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

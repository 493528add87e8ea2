"""The runner of the proofs: a run that is killed goes on, and repeats nothing that is done."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conformance import runner


def squared(number: int, calls: str) -> float:
    """The square, noted in a file; 3 has none until the file `ready` is there."""
    folder = Path(calls)
    with (folder / "calls").open("a") as file:
        file.write(f"{number}\n")
    if number == 3 and not (folder / "ready").exists():
        raise ValueError("3 is not ready")
    return float("inf") if number == 0 else number * number


def items(folder: Path, count: int = 5) -> dict[str, dict[str, object]]:
    return {str(at): {"number": at, "calls": str(folder)} for at in range(count)}


def called(folder: Path) -> list[int]:
    return sorted(int(x) for x in (folder / "calls").read_text().split())


def test_results_come_in_order_and_only_what_failed_is_repeated(tmp_path) -> None:
    store = tmp_path / "store"
    first = runner.run(squared, items(tmp_path), float, jobs=1, store=store)
    assert list(first.results) == ["0", "1", "2", "4"]
    assert first.results["0"] == float("inf")
    assert first.errors == {"3": "ValueError: 3 is not ready"}
    (tmp_path / "ready").touch()
    second = runner.run(squared, items(tmp_path), float, jobs=1, store=store)
    assert second.results == {"0": float("inf"), "1": 1.0, "2": 4.0, "3": 9.0, "4": 16.0}
    assert called(tmp_path) == [0, 1, 2, 3, 3, 4]
    runner.run(squared, items(tmp_path), float, jobs=1, store=store, fresh=True)
    assert len(called(tmp_path)) == 11


def test_other_options_and_other_code_are_other_results(tmp_path, monkeypatch) -> None:
    store = tmp_path / "store"
    runner.run(squared, items(tmp_path, 2), float, jobs=1, store=store)
    runner.run(squared, {"1": {"number": 2, "calls": str(tmp_path)}}, float, jobs=1, store=store)
    assert called(tmp_path) == [0, 1, 2]
    monkeypatch.setattr(runner, "code_digest", lambda: "another")
    runner.run(squared, items(tmp_path, 2), float, jobs=1, store=store)
    assert called(tmp_path) == [0, 0, 1, 1, 2]


@pytest.mark.parametrize("text", ["", "{", '"text"', "[1]"])
def test_a_damaged_result_is_made_again(tmp_path, text: str) -> None:
    store = runner.Store(tmp_path)
    store.put("key", 1.5)
    assert store.get("key", float) == 1.5
    (tmp_path / "key.json").write_text(text)
    assert store.get("key", float) is None
    assert store.get("absent", float) is None


KILLED = """
import os, signal, sys
from tests.conformance import runner, test_runner
from pathlib import Path
folder = Path(sys.argv[1])
def line(value):
    if value == 4.0:
        os.killpg(os.getpgrp(), signal.SIGKILL)
    return str(value)
runner.run(test_runner.squared, test_runner.items(folder), float, jobs=2,
           store=folder / "store", line=line)
"""


def test_a_killed_run_goes_on_in_processes(tmp_path) -> None:
    (tmp_path / "ready").touch()
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)], cwd=runner.ROOT, start_new_session=True
    )
    assert killed.returncode == -9
    done = len(list((tmp_path / "store").glob("*.json")))
    before = len(called(tmp_path))
    assert 1 <= done <= before
    finished = runner.run(squared, items(tmp_path), float, jobs=1, store=tmp_path / "store")
    assert list(finished.results.values()) == [float("inf"), 1.0, 4.0, 9.0, 16.0]
    assert len(called(tmp_path)) == before + 5 - done

"""Calls in processes: one that dies costs its own call alone."""

import dataclasses
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from rope_export.errors import UnavailableError
from rope_export.jobs import Answer, Call, Store, run
from rope_export.jobs.call import Needs
from rope_export.jobs.cluster import Cluster, _options
from rope_export.jobs.local import DIED, Processes
from tests.support.machines import Machines


def squares(numbers: list[int]) -> dict[str, float]:
    """A value for each number; 3 ends the process, as a crash in native code does."""
    if 3 in numbers:
        os.kill(os.getpid(), signal.SIGKILL)
    return {str(number): float(number * number) for number in numbers}


def calls(*groups: list[int]) -> list[Call]:
    return [
        Call(
            name=str(numbers),
            function=squares,
            options={"numbers": numbers},
            keys={str(number): f"key {number}" for number in numbers},
        )
        for numbers in groups
    ]


def line(answer: Answer) -> str:
    return str(answer.values)


def test_a_call_answers_several_items_and_is_made_again_if_one_is_missing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    found = run(calls([1, 2], [4]), float, pool=Processes(1), store=store, line=line)
    assert found.results == {"1": 1.0, "2": 4.0, "4": 16.0}
    (tmp_path / "key 2.json").unlink()
    store.put("key 4", 5.0)
    found = run(calls([1, 2], [4]), float, pool=Processes(1), store=store, line=line)
    assert found.results == {"1": 1.0, "2": 4.0, "4": 5.0}


def test_a_process_that_dies_costs_its_own_call_alone(tmp_path: Path) -> None:
    groups = [[1], [2, 3], [4], [5]]
    found = run(calls(*groups), float, pool=Processes(2), store=Store(tmp_path), line=line)
    assert found.results == {"1": 1.0, "4": 16.0, "5": 25.0}
    assert found.errors == {"2": DIED, "3": DIED}


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "joblib", None)
    with pytest.raises(UnavailableError, match=r"joblib.*rope_export\[sweep\]"):
        run(calls([1]), float, pool=Processes(2), store=Store(tmp_path), line=line)
    assert not run([], float, pool=Processes(2), store=Store(tmp_path), line=line).results


def refused(numbers: list[int]) -> dict[str, float]:
    """Raises what looks like the markup of a terminal."""
    raise OSError("[/models/x.onnx] and [red] have no memory")


def test_an_error_is_shown_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = dataclasses.replace(*calls([1]), function=refused)
    found = run([call], float, pool=Processes(1), store=Store(tmp_path), line=line)
    assert found.errors == {"1": "OSError: [/models/x.onnx] and [red] have no memory"}
    assert found.errors["1"] in capsys.readouterr().err


def slow(number: int, folder: str) -> dict[str, float]:
    """The number, after a while; notes on which machine of a cluster it was begun."""
    import ray

    with (Path(folder) / "begun").open("a") as file:
        file.write(f"{number} {ray.get_runtime_context().get_node_id()}\n")
    time.sleep(4)
    return {str(number): float(number)}


@pytest.mark.long
def test_what_a_machine_of_a_cluster_loses_is_made_again(tmp_path: Path, cluster: Machines) -> None:
    """A machine of three is killed while it computes."""
    asked = [
        Call(
            name=str(number),
            function=slow,
            options={"number": number, "folder": str(tmp_path)},
            keys={str(number): f"key {number}"},
        )
        for number in range(9)
    ]
    lost: list[str] = []

    def begun() -> list[list[str]]:
        return [x.split() for x in (tmp_path / "begun").read_text().splitlines()]

    class Watched(Cluster):
        def answers(self, calls: Sequence[Call], store: Store) -> Iterator[Answer]:
            for answer in super().answers(calls, store):
                before = len(begun())
                while not lost:
                    if len(begun()) > before:  # one that has just begun
                        number, node = begun()[-1]
                        lost.append(number)
                        cluster.kill(node)
                yield answer

    store = Store(tmp_path / "store")
    found = run(asked, float, pool=Watched(cluster.address), store=store, line=line)
    assert found.results == {str(number): float(number) for number in range(9)}
    assert not found.errors
    assert [number for number, _ in begun()].count(lost[0]) == 2
    assert store.get("key 8", float) == 8.0


def test_an_address_without_a_cluster_is_told_in_a_line(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="the package 'ray' is not installed")
    pool = Cluster("127.0.0.1:1")
    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:1: no Ray cluster answers there"):
        run(calls([1]), float, pool=pool, store=Store(tmp_path), line=line)


GIGABYTE = 1 << 30


@pytest.mark.parametrize(
    ("nodes", "gpus", "memory"),
    [
        ([{"GPU": 2.0, "memory": 8.0 * GIGABYTE}, {}], 1.0, 4 * GIGABYTE),
        ([{"memory": 2.0 * GIGABYTE}], 0.0, 2 * GIGABYTE),
    ],
)
def test_a_task_asks_for_no_more_than_a_machine_has(nodes, gpus, memory) -> None:
    """A task that no machine can take would wait for ever; without a GPU its cells are skipped."""
    alive = [{"Alive": True, "Resources": x} for x in nodes]
    alive.append({"Alive": False, "Resources": {"GPU": 8.0, "memory": 1e15}})
    options = _options(Needs(gpus=1.0, memory=4 * GIGABYTE), alive)
    assert (options["num_cpus"], options["num_gpus"], options["memory"]) == (1.0, gpus, memory)
    assert options["max_retries"] > 0

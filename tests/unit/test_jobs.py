"""Calls in processes: one that dies costs its own call alone."""

import os
import signal
from pathlib import Path

import pytest

from rope_export.jobs import Answer, Call, Store, run
from rope_export.jobs.call import Needs
from rope_export.jobs.cluster import _options
from rope_export.jobs.local import DIED, Processes


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

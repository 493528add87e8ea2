"""Weights of a session in huge pages, and what is left of the memory afterwards."""

import ctypes
import json
import subprocess
import sys
from pathlib import Path

import pytest

from rope_export.runtimes import heap

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux")
    or not hasattr(ctypes.CDLL(None), "gnu_get_libc_version")
    or not heap.ENABLED.exists()
    or "[never]" in heap.ENABLED.read_text(encoding="ascii"),
    reason="huge pages are asked for on Linux with glibc, where the system gives them",
)


def in_a_process(step: str) -> dict[str, int]:
    command = [sys.executable, "-m", "tests.support.heap_steps", step]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, int] = json.loads(done.stdout)
    return found


def test_many_blocks_lie_in_huge_pages() -> None:
    found = in_a_process("many")
    assert found["huge"] > 0.8 * found["taken"]


def test_afterwards_large_blocks_are_mapped_again() -> None:
    found = in_a_process("large")
    assert found["inside"] < found["heap_end"] < found["afterwards"]


def test_what_was_given_up_goes_back_to_the_system() -> None:
    found = in_a_process("freed")
    assert found["huge"] < 0.7 * found["taken"]


def test_another_thread_has_another_heap_and_is_left_alone() -> None:
    assert in_a_process("thread")["grown"] < heap.SMALLEST


def test_small_models_are_left_alone() -> None:
    assert in_a_process("small")["grown"] < heap.SMALLEST

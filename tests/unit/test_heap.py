"""Weights of a session in huge pages, and what is left of the memory afterwards."""

import ctypes
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from rope_export.runtimes import heap

MEGABYTE = 1 << 20
BLOCKS = 24

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux")
    or not hasattr(ctypes.CDLL(None), "gnu_get_libc_version")
    or not heap.ENABLED.exists()
    or "[never]" in heap.ENABLED.read_text(encoding="ascii"),
    reason="huge pages are asked for on Linux with glibc, where the system gives them",
)


def _huge() -> int:
    """Bytes of this process in huge pages."""
    text = Path("/proc/self/smaps_rollup").read_text(encoding="ascii")
    found = re.search(r"AnonHugePages:\s+(\d+) kB", text)
    assert found
    return int(found[1]) << 10


@pytest.fixture
def library() -> ctypes.CDLL:
    library = ctypes.CDLL(None)
    library.malloc.restype = ctypes.c_void_p
    library.malloc.argtypes = [ctypes.c_size_t]
    library.free.argtypes = [ctypes.c_void_p]
    return library


@pytest.fixture
def blocks(library: ctypes.CDLL) -> Iterator[list[int]]:
    """Memory that a test took."""
    taken: list[int] = []
    yield taken
    for block in taken:
        library.free(block)
    heap.give_back(heap.SMALLEST)


def _take(library: ctypes.CDLL, blocks: list[int], size: int) -> int:
    blocks.append(library.malloc(size))
    ctypes.memset(blocks[-1], 1, size)
    return blocks[-1]


def test_many_blocks_lie_in_huge_pages(library: ctypes.CDLL, blocks: list[int]) -> None:
    """Blocks of 3 MiB each, which the C library would map one by one."""
    before = _huge()
    size = 3 * MEGABYTE
    with heap.in_huge_pages(model=0, data=BLOCKS * size):
        for _ in range(BLOCKS):
            _take(library, blocks, size)
    assert _huge() - before > 0.8 * BLOCKS * size


def test_afterwards_large_blocks_are_mapped_again(library: ctypes.CDLL, blocks: list[int]) -> None:
    with heap.in_huge_pages(model=0, data=64 * MEGABYTE):
        inside = _take(library, blocks, 40 * MEGABYTE)
    outside = _take(library, blocks, 40 * MEGABYTE)
    assert inside < heap._heap_end() < outside


def test_what_was_given_up_goes_back_to_the_system(library: ctypes.CDLL, blocks: list[int]) -> None:
    """The free ones lie between others, so the end of the heap alone would not give them back."""
    before = _huge()
    with heap.in_huge_pages(model=0, data=96 * MEGABYTE):
        taken = [library.malloc(4 * MEGABYTE) for _ in range(BLOCKS)]
        for block in taken:
            ctypes.memset(block, 1, 4 * MEGABYTE)
        blocks += taken[1::2]
        for block in taken[::2]:
            library.free(block)
    assert _huge() - before < 0.7 * BLOCKS * 4 * MEGABYTE


def test_another_thread_has_another_heap_and_is_left_alone() -> None:
    before = heap._heap_end()

    def load() -> None:
        with heap.in_huge_pages(model=0, data=256 * MEGABYTE):
            pass

    thread = threading.Thread(target=load)
    thread.start()
    thread.join()
    assert heap._heap_end() - before < 64 * MEGABYTE


def test_small_models_are_left_alone() -> None:
    before = heap._heap_end()
    with heap.in_huge_pages(model=MEGABYTE, data=0):
        assert heap._heap_end() == before

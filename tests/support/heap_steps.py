"""What the heap of a fresh process does around `in_huge_pages`: `python -m tests.support.heap_steps
NAME` prints a JSON object. A process that has run other code may have left its main heap."""

import ctypes
import json
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from rope_export.runtimes import heap

MEGABYTE = 1 << 20
BLOCKS = 24

LIBRARY = ctypes.CDLL(None)
LIBRARY.malloc.restype, LIBRARY.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
LIBRARY.free.restype, LIBRARY.free.argtypes = None, [ctypes.c_void_p]


def huge() -> int:
    """Bytes of this process in huge pages."""
    text = Path("/proc/self/smaps_rollup").read_text(encoding="ascii")
    found = re.search(r"AnonHugePages:\s+(\d+) kB", text)
    assert found
    return int(found[1]) << 10


def heap_end() -> int:
    """Where the heap ends; 0 if there is none."""
    lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    ends = [int(line.split()[0].partition("-")[2], 16) for line in lines if "[heap]" in line]
    return max(ends, default=0)


def take(megabytes: int) -> int:
    """A block of memory that is written to."""
    block: int = LIBRARY.malloc(megabytes * MEGABYTE)
    ctypes.memset(block, 1, megabytes * MEGABYTE)
    return block


def many() -> dict[str, int]:
    """Blocks of 3 MiB each, which the C library would map one by one."""
    before = huge()
    with heap.in_huge_pages(model=0, data=BLOCKS * 3 * MEGABYTE):
        for _ in range(BLOCKS):
            take(3)
    return {"huge": huge() - before, "taken": BLOCKS * 3 * MEGABYTE}


def large() -> dict[str, int]:
    """A block that is taken inside, and one afterwards."""
    with heap.in_huge_pages(model=0, data=64 * MEGABYTE):
        inside = take(40)
    return {"inside": inside, "afterwards": take(40), "heap_end": heap_end()}


def freed() -> dict[str, int]:
    """Every other block is given up: the end of the heap alone would give back none of them."""
    before = huge()
    with heap.in_huge_pages(model=0, data=4 * BLOCKS * MEGABYTE):
        for block in [take(4) for _ in range(BLOCKS)][::2]:
            LIBRARY.free(block)
    return {"huge": huge() - before, "taken": 4 * BLOCKS * MEGABYTE}


def thread() -> dict[str, int]:
    """In another thread than the main one."""

    def load() -> None:
        with heap.in_huge_pages(model=0, data=256 * MEGABYTE):
            pass

    before = heap_end()
    other = threading.Thread(target=load)
    other.start()
    other.join()
    return {"grown": heap_end() - before}


def small() -> dict[str, int]:
    """Around a small model."""
    before = heap_end()
    with heap.in_huge_pages(model=MEGABYTE, data=0):
        return {"grown": heap_end() - before}


STEPS: dict[str, Callable[[], dict[str, int]]] = {
    step.__name__: step for step in (many, large, freed, thread, small)
}

if __name__ == "__main__":
    print(json.dumps(STEPS[sys.argv[1]]()))

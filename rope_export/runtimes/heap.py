"""Memory for a session's weights: one piece of the heap, in huge pages where Linux has them.

A step of generating reads every weight once. In pages of 4 KiB the processor looks up an address
for each; in huge pages (2 MiB) hardly ever. onnxruntime allocates each weight by itself, so the C
library would map each by itself, in small pages. Here the heap is grown by as much as is needed
and marked for huge pages before any of it is touched, and the C library is told to take every
block from it. Where anything of this is missing (another system, another C library, another thread
than the main one, whose heap is another), nothing is done.
"""

import ctypes
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HUGE_PAGE = 1 << 21
"""Bytes of a huge page of x86-64 and of most 64-bit ARM."""

SMALLEST = 1 << 26
"""Bytes of the heap from which it pays."""

ROOM_OF_MODEL, ROOM_OF_DATA = 3.5, 1.5
"""Bytes of the heap for each byte of a model's file and of its data's: what is parsed, the weights
and the packed weights lie there together for a moment."""

ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")
MAPS = Path("/proc/self/maps")

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
"""mallopt's parameters, of malloc.h."""

NEVER = -1
"""The threshold at which the end of the heap is never given back."""

MAPPED = 1 << 16
"""How many blocks the C library may map by themselves; its own number."""

MAPPED_FROM = 1 << 25
"""Bytes of a block that it maps by itself, once a session is loaded: the largest value that it
would reach on its own."""

KEPT_FREE = 2 * MAPPED_FROM
"""Bytes at the end of the heap that stay with the process, of which the same is true."""

MADV_HUGEPAGE = 14
"""madvise's advice, of sys/mman.h."""


@contextmanager
def in_huge_pages(model: int, data: int) -> Iterator[None]:
    """A session that is loaded inside has its weights in huge pages; afterwards, what was given up
    meanwhile goes back to the system.

    model, data: bytes of model.onnx and of model.onnx.data.
    """
    size = int(model * ROOM_OF_MODEL + data * ROOM_OF_DATA)
    library = _c_library() if size >= SMALLEST else None
    if library is None:
        yield
        return
    main = threading.current_thread() is threading.main_thread()
    one_piece = main and _enabled()
    if one_piece:
        _grow(library, size)
    try:
        yield
    finally:
        if one_piece:
            library.mallopt(M_MMAP_MAX, MAPPED)
            library.mallopt(M_MMAP_THRESHOLD, MAPPED_FROM)
            library.mallopt(M_TRIM_THRESHOLD, KEPT_FREE)
        library.malloc_trim(0)


def give_back(size: int) -> None:
    """Gives memory that nothing uses back to the system, once a session of files of so many bytes
    is closed."""
    library = _c_library() if size >= SMALLEST else None
    if library is not None:
        library.malloc_trim(0)


def _enabled() -> bool:
    """Whether a process may ask for huge pages."""
    try:
        return "[never]" not in ENABLED.read_text(encoding="ascii")
    except OSError:
        return False


def _grow(library: Any, size: int) -> None:
    """Grows the heap by `size` free bytes, marked for huge pages before any of them is touched."""
    before = _heap_end()
    library.mallopt(M_MMAP_MAX, 0)
    library.mallopt(M_TRIM_THRESHOLD, NEVER)
    library.free(library.malloc(size))
    first, last = -(-before // HUGE_PAGE) * HUGE_PAGE, _heap_end() // HUGE_PAGE * HUGE_PAGE
    if first < last:
        library.madvise(first, last - first, MADV_HUGEPAGE)


def _heap_end() -> int:
    """The address where the heap ends, 0 if there is none."""
    for line in MAPS.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.endswith("[heap]"):
            return int(line.split()[0].partition("-")[2], 16)
    return 0


def _c_library() -> Any:
    """The C library of this process, if it is glibc on Linux."""
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    if not all(hasattr(library, name) for name in ("gnu_get_libc_version", "mallopt", "madvise")):
        return None
    types: dict[str, tuple[Any, list[Any]]] = {
        "malloc": (ctypes.c_void_p, [ctypes.c_size_t]),
        "free": (None, [ctypes.c_void_p]),
        "mallopt": (ctypes.c_int, [ctypes.c_int, ctypes.c_int]),
        "malloc_trim": (ctypes.c_int, [ctypes.c_size_t]),
        "madvise": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]),
    }
    for name, (result, arguments) in types.items():
        function: Callable[..., Any] = getattr(library, name)
        function.restype, function.argtypes = result, arguments  # type: ignore[attr-defined]
    return library

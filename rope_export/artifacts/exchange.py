"""Two paths that change places in one step, where the system can do that."""

import ctypes
import errno
import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

AT_FDCWD = -100
RENAME_EXCHANGE = 2
RENAME_SWAP = 2
CANNOT = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM}
"""Errors of a kernel or file system that cannot exchange two paths in one step."""


def exchange_paths(one: Path, other: Path) -> bool:
    """Let two paths of one file system change places; False where there is no way to.

    Raises: OSError if one of them is not there, or may not be renamed.
    Source: Linux, rename(2), renameat2 with RENAME_EXCHANGE; macOS, renamex_np with RENAME_SWAP.
    """
    rename = _system()
    if rename is None:
        return False
    a, b = os.fsencode(one), os.fsencode(other)
    if sys.platform == "darwin":
        failed = rename(a, b, RENAME_SWAP)
    else:
        failed = rename(AT_FDCWD, a, AT_FDCWD, b, RENAME_EXCHANGE)
    if not failed:
        return True
    number = ctypes.get_errno()
    if number in CANNOT:
        return False
    raise OSError(number, os.strerror(number), str(other))


@cache
def _system() -> Any:
    """The function of the C library that exchanges two paths, or nothing."""
    if sys.platform not in ("linux", "darwin"):
        return None
    try:
        library = ctypes.CDLL(None, use_errno=True)
        function = library.renamex_np if sys.platform == "darwin" else library.renameat2
    except (OSError, AttributeError):
        return None
    if sys.platform == "darwin":
        function.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_uint]
    else:
        text, number = ctypes.c_char_p, ctypes.c_int
        function.argtypes = [number, text, number, text, ctypes.c_uint]
    function.restype = ctypes.c_int
    return function

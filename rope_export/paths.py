"""Paths that a user gives: where something is to be written, and what is read.

What cannot work is refused before any work is done; what is refused is left as it is.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from platformdirs import user_cache_path

from rope_export.errors import InputError

CACHE = "ROPE_EXPORT_CACHE"
"""Names the folder of everything that is kept to be used again."""

LONGEST = 4096 - 160
"""Bytes of a folder's path: below it lie temporary folders and the files' own names."""

WRONG = {
    errno.ENAMETOOLONG: "is longer than a file system allows; give a shorter one",
    errno.ENOTDIR: "leads through a file that is no folder",
    errno.ELOOP: "is a link that leads to itself",
    errno.EINVAL: "is not a name that this file system takes",
    errno.EILSEQ: "is not a name that this file system takes",
    errno.ENOENT: "leads through a folder that is not there",
}
"""What an error of the system tells about a path, by its number."""


@contextmanager
def named(path: str | Path) -> Iterator[None]:
    """Reports in one line what is wrong with a path.

    Raises: InputError in place of an OSError or a ValueError that is about the path itself.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in WRONG:
            raise
        raise InputError(f"{shown(path)}: {WRONG[error.errno]}.") from error
    except ValueError as error:  # a zero byte, or a name that cannot be encoded for the system
        raise InputError(f"{shown(path)}: is not a path ({error}).") from error


def cache_folder() -> Path | None:
    """The folder for what can be made or fetched again: ROPE_EXPORT_CACHE, or the user's own cache
    folder as the system has it (XDG_CACHE_HOME on Linux); nothing for a user who has no home."""
    chosen = os.environ.get(CACHE)
    if chosen:
        return Path(chosen)
    try:
        folder = user_cache_path("rope_export", appauthor=False, opinion=False)
    except RuntimeError:
        return None
    return folder if folder.is_absolute() else None


def shown(path: str | Path) -> str:
    """A path as it can be printed: bytes that are not UTF-8 are escaped, long ones shortened."""
    text = os.fspath(path).encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")
    return text if len(text) <= 300 else f"{text[:140]}…{text[-140:]}"


def utf8(path: str | Path) -> None:
    """Raises: InputError for a path that is not UTF-8, which the libraries that write models and
    read tensors do not take."""
    try:
        os.path.abspath(path).encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{shown(path)}: is not UTF-8; rename it, or give another path."
        ) from error


def readable(path: str | Path) -> Path:
    """A path that is to be read, if something is there.

    Raises: InputError for one that leads nowhere whatever lies on the disk.
    """
    with named(path), suppress(FileNotFoundError):
        os.stat(path)
    return Path(path)


def source(path: str | Path) -> Path:
    """A path as `readable` has it, for libraries that take UTF-8 alone.

    Raises: InputError for one that leads nowhere, or is not UTF-8.
    """
    with named(path):
        utf8(path)
    return readable(path)


def existing_file(path: str | Path) -> Path:
    """A file that is to be read.

    Raises: InputError where there is none.
    """
    if not readable(path).is_file():
        what = "is no file" if os.path.lexists(path) else "is not there"
        raise InputError(f"{shown(path)}: {what}.")
    return Path(path)


def file_target(path: str | Path, kind: str, mark: bytes) -> Path:
    """The real place of a file that is to be written; a link is followed.

    kind: what it will be, such as "a report". mark: stands in every such file, near its beginning.
    Raises: InputError where a file cannot be replaced as a whole, or one lies there that is of
        another kind and would be lost; OSError where nothing may be written.
    """
    with named(path):
        utf8(path)
        _check_links(path)
        place = Path(os.path.realpath(path))
        mode = _mode(place)
        if mode is not None and not stat.S_ISREG(mode):
            raise InputError(f"{shown(path)}: is no file; {kind} is one. Give another path.")
        if not place.parent.is_dir():
            raise InputError(f"{shown(path)}: there is no folder {shown(place.parent)}.")
        if not os.access(place.parent, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), shown(place.parent))
        if mode is not None and os.path.getsize(place) and mark not in _beginning(place):
            raise InputError(
                f"{shown(path)}: is there already, and is not {kind} of ours. Give another path."
            )
    return place


def target(path: str | Path, kind: str) -> Path:
    """The real place of a folder that is to be written, its parent's links followed.

    kind: what it will be, such as "an artifact".
    Raises: InputError where a folder cannot be replaced as a whole: a file, a link, the current
        folder or one that holds it, a mount point, a name that is too long or not UTF-8; OSError
        where nothing may be written.
    """
    with named(path):
        text = os.fspath(path)
        name = os.path.basename(text.rstrip("/" + os.sep))
        if name in ("", os.curdir, os.pardir):
            place = Path(os.path.realpath(text))
        else:
            place = Path(os.path.realpath(os.path.dirname(text.rstrip("/" + os.sep)) or "."), name)
        utf8(place)
        _check_links(path)
        if len(os.fsencode(place)) > LONGEST:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        _check_itself(path, place, kind)
        _check_parents(path, place)
    return place


def _check_itself(path: str | Path, place: Path, kind: str) -> None:
    here = Path(os.path.realpath(os.curdir))
    if place == here or place in here.parents:
        raise InputError(
            f"{shown(path)}: is the current folder, or holds it; {kind} is a folder that is "
            f"replaced as a whole. Give one inside it."
        )
    mode = _mode(place)
    if mode is None:
        return
    if stat.S_ISLNK(mode):
        raise InputError(
            f"{shown(path)}: is a link to {shown(os.path.realpath(place))}; {kind} is a folder. "
            f"Give that one, or another."
        )
    if not stat.S_ISDIR(mode):
        raise InputError(f"{shown(path)}: is a file; {kind} is a folder. Give another path.")
    if os.path.ismount(place):
        raise InputError(
            f"{shown(path)}: is a mount point, which cannot be replaced. Give a folder inside it."
        )


def _check_links(path: str | Path) -> None:
    """Refuses a path with a parent that is a link that leads nowhere: its target would be made."""
    for parent in Path(path).parents:
        if parent.is_symlink() and not os.path.exists(parent):
            raise InputError(
                f"{shown(path)}: {shown(parent)} is a link that leads nowhere. Give another path."
            )


def _check_parents(path: str | Path, place: Path) -> None:
    """Refuses a path whose nearest parent is no folder in which something can be made."""
    for parent in place.parents:
        mode = _mode(parent)
        if mode is None:
            continue
        if not stat.S_ISDIR(mode):
            raise InputError(f"{shown(path)}: {shown(parent)} is no folder. Give another path.")
        if not os.access(parent, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), shown(parent))
        return


def _beginning(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(1 << 16)


def _mode(path: Path) -> int | None:
    try:
        return os.lstat(path).st_mode
    except FileNotFoundError:
        return None

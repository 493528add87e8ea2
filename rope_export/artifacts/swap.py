"""Replace a folder or a file as a whole: whenever it stops, the old one or the new one is there.

What is being written lies beside its target in a folder of our own, whose name carries a checksum
and whose `owner.json` names its target: what a killed writer leaves is recognised by that and
cleared by the next one, and nothing that belongs to somebody else is mistaken for it. The two then
change places in one step. Where the file system cannot do that, the old folder steps aside first,
and a swap that was stopped between the two steps is finished by the next `heal`.
"""

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock

from rope_export.artifacts import exchange

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

PREFIX = ".rope_export-"
OWNER, NEW, OLD = "owner.json", "new", "old"
START = b'{"kind": "rope_export temporary folder", "target": '
"""How every owner.json begins."""

Check = Callable[[Path], None]


@contextlib.contextmanager
def locked(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold `folder` against other processes and threads; the lock goes with the process.

    The folder itself is locked where the system can do that, so that no file is left in it;
    elsewhere, as on Windows, a file in the user's temporary folder stands for it.

    Raises: BlockingIOError if another holds it and this is not to wait; OSError if this is not to
        wait and the folder cannot be locked. Who waits goes on without a lock where there are none.
    """
    with contextlib.ExitStack() as stack:
        try:
            if fcntl is None:
                stack.enter_context(filelock.FileLock(_stand_in(folder), -1 if wait else 0))
            else:
                handle = os.open(folder, os.O_RDONLY)
                stack.callback(os.close, handle)
                fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except filelock.Timeout as error:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN), str(folder)) from error
        except OSError:
            if not wait:
                raise
        yield


def _stand_in(folder: Path) -> Path:
    """The file that is locked in place of a folder."""
    name = hashlib.sha256(os.fsencode(os.path.realpath(folder))).hexdigest()[:32]
    return Path(tempfile.gettempdir(), f"rope_export-{name}.lock")


def sync(path: Path) -> None:
    """Bring a file's contents, or a folder's entries, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):  # not for folders here
            raise
    finally:
        os.close(handle)


def replace(target: Path, fill: Callable[[Path], None], check: Check) -> None:
    """Make the folder `target` anew: `fill` writes into an empty one, which then takes its place.

    check: raises for a folder that must not be replaced. It is asked about the one that is there
    just before it is, and about the one that was there just after; then it comes back.
    Raises: whatever `fill` and `check` raise, and OSError; `target` is then as it was and nothing
        is left.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    heal(target)
    with _work(target) as work:
        new = work / NEW
        new.mkdir()
        fill(new)
        for folder, _, names in os.walk(new):
            for name in names:
                sync(Path(folder, name))
            sync(Path(folder))
        with locked(target.parent):
            _commit(work, target, check)
            sync(target.parent)


def write(path: Path, contents: str | bytes) -> None:
    """Replace one file as a whole; text is written as UTF-8. A link is replaced, not followed."""
    with writing(path) as new:
        new.write_bytes(contents.encode() if isinstance(contents, str) else contents)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A path to write to; what is there at the end of the block replaces the file `path` as a
    whole. A link is replaced, not followed."""
    with _work(path) as work:
        yield work / NEW
        sync(work / NEW)
        os.replace(work / NEW, path)


def heal(target: Path) -> None:
    """Finish a swap of `target` that was interrupted; does nothing if there was none."""
    if os.path.lexists(target) or not any(_interrupted(target)):
        return
    # Where nothing can be written, nothing can be healed.
    with contextlib.suppress(OSError), locked(target.parent):
        for work in _interrupted(target):
            if not os.path.lexists(target):
                os.rename(work / NEW, target)
                sync(target.parent)


def is_ours(path: Path) -> bool:
    """Whether something is a temporary folder of this module, by its name's checksum and what it
    holds; other files beside ours make it somebody's own."""
    token = path.name.removeprefix(PREFIX)
    if path.name != _name(token[:16]):
        return False
    try:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            return False
        held = set(os.listdir(path))
        if not held <= {OWNER, NEW, OLD}:
            return False
        if not held:
            return True
        owner = _owner(path)
        begun = START.startswith(owner) or owner.startswith(START)
        return _target_of(path) is not None or (held == {OWNER} and begun)
    except OSError:
        return False


def foreign(folder: Path) -> Iterator[Path]:
    """What lies in `folder` but for temporary folders of ours, by name."""
    return (path for path in sorted(folder.iterdir()) if not is_ours(path))


def clear(folder: Path) -> None:
    """Remove what killed writers left in `folder`; a living one holds a lock on its own."""
    for work in _works(folder):
        with contextlib.suppress(OSError), locked(work, wait=False):
            if not is_ours(work):
                continue
            name = _target_of(work)
            if name is not None and {NEW, OLD} <= set(os.listdir(work)):
                target = folder / name
                if not os.path.lexists(target):
                    os.rename(work / NEW, target)
            _discard(work)


def _name(token: str) -> str:
    proof = hashlib.sha256(f"rope_export temporary folder {token}".encode()).hexdigest()
    return f"{PREFIX}{token}{proof[:16]}"


def _works(folder: Path) -> list[Path]:
    """The temporary folders in `folder`."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.name.startswith(PREFIX)]
    except OSError:
        return []
    return [path for path in (folder / name for name in names) if is_ours(path)]


def _owner(work: Path) -> bytes:
    """The first bytes of a temporary folder's owner.json."""
    handle = os.open(work / OWNER, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    with os.fdopen(handle, "rb") as file:
        return file.read(1 << 16)


def _target_of(work: Path) -> str | None:
    """The name of what a temporary folder is to become; nothing where that is not written yet."""
    try:
        owner = _owner(work)
        return str(json.loads(owner)["target"]) if owner.startswith(START) else None
    except (FileNotFoundError, ValueError, KeyError):
        return None


def _interrupted(target: Path) -> Iterator[Path]:
    """Temporary folders whose swap stopped after the old folder had stepped aside."""
    for work in _works(target.parent):
        with contextlib.suppress(OSError):
            if {NEW, OLD} <= set(os.listdir(work)) and _target_of(work) == target.name:
                yield work


@contextlib.contextmanager
def _work(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target`, locked as long as it is used, and then removed."""
    with contextlib.ExitStack() as held:
        with locked(target.parent):
            clear(target.parent)
            work = target.with_name(_name(secrets.token_hex(8)))
            work.mkdir(mode=0o700)
            held.enter_context(locked(work))
            held.callback(_discard, work)
            owner = START + json.dumps(target.name).encode() + b"}\n"
            (work / OWNER).write_bytes(owner)
        yield work


def _discard(work: Path) -> None:
    """Remove a temporary folder; owner.json goes last, so that a rest is still recognised."""
    for name in (NEW, OLD):
        part = work / name
        if part.is_dir() and not part.is_symlink():
            shutil.rmtree(part, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                part.unlink()
    with contextlib.suppress(OSError):
        if not {NEW, OLD} & set(os.listdir(work)):
            (work / OWNER).unlink(missing_ok=True)
            work.rmdir()


def _commit(work: Path, target: Path, check: Check) -> None:
    """Put the new folder where the old one is; `work` then holds the old one, if there was one."""
    new, old = work / NEW, work / OLD
    if not os.path.lexists(target):
        os.rename(new, target)
        return
    check(target)
    if exchange.exchange_paths(new, target):
        try:
            check(new)
        except BaseException:
            exchange.exchange_paths(new, target)
            raise
        return
    os.rename(target, old)
    try:
        check(old)
        os.rename(new, target)
    except BaseException:
        os.rename(old, target)
        raise

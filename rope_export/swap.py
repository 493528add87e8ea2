"""Replace a folder as a whole: whenever it stops, the old folder or the new one is there.

A folder cannot be renamed over another, so the old one steps aside first. A swap that was stopped
between the two renames is finished by the next `heal`, which every open calls.
"""

import contextlib
import glob
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

STAGED = ".{}.new"
ASIDE = ".{}.old"
WORK = ".{}.partial-"


@contextlib.contextmanager
def _locked(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold `folder` against other processes; the lock goes with the process.

    Raises: BlockingIOError if another holds it and this is not to wait.
    """
    try:
        import fcntl
    except ImportError:  # no such locks on Windows: two writers of one artifact are not kept apart
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def _clear(target: Path) -> None:
    """Remove what killed writers of `target` left: a living one holds a lock on its folder."""
    for work in target.parent.glob(glob.escape(WORK.format(target.name)) + "*"):
        with contextlib.suppress(OSError), _locked(work, wait=False):
            shutil.rmtree(work, ignore_errors=True)


def sync(path: Path) -> None:
    """Bring a file's contents, or a folder's entries, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def heal(target: Path) -> None:
    """Finish a swap of `target` that was interrupted; does nothing if there was none."""
    staged, aside = _names(target)
    if target.exists() or not (staged.exists() or aside.exists()):
        return
    with _locked(target.parent):
        if not target.exists() and staged.exists() and aside.exists():
            os.rename(staged, target)
            sync(target.parent)
            shutil.rmtree(aside, ignore_errors=True)
        elif not target.exists() and aside.exists():
            os.rename(aside, target)


def replace(target: Path, fill: Callable[[Path], None]) -> None:
    """Make the folder `target` anew: `fill` writes into an empty one, which then takes its place.

    Raises: whatever `fill` raises, and OSError; `target` is then as it was and nothing is left.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    heal(target)
    staged, aside = _names(target)
    with _locked(target.parent):
        _clear(target)
        work = Path(tempfile.mkdtemp(prefix=WORK.format(target.name), dir=target.parent))
        held = contextlib.ExitStack()
        held.enter_context(_locked(work))
    try:
        with held:
            work.chmod(0o777 & ~_umask())
            fill(work)
            for path in sorted(work.iterdir()):
                sync(path)
            sync(work)
            with _locked(target.parent):
                shutil.rmtree(staged, ignore_errors=True)
                shutil.rmtree(aside, ignore_errors=True)
                if target.exists() and any(target.iterdir()):
                    os.rename(work, staged)
                    os.rename(target, aside)
                    os.rename(staged, target)
                else:
                    os.rename(work, target)  # onto nothing, or onto an empty folder
                sync(target.parent)
                shutil.rmtree(aside, ignore_errors=True)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        heal(target)
        raise


def write(path: Path, contents: str | bytes) -> None:
    """Replace one file as a whole; text is written as UTF-8."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(contents.encode() if isinstance(contents, str) else contents)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


def _names(target: Path) -> tuple[Path, Path]:
    return target.with_name(STAGED.format(target.name)), target.with_name(ASIDE.format(target.name))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

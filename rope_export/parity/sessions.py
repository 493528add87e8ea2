"""Sessions of what was opened, on the runtimes that are here."""

from rope_export.artifacts.folder import Folder
from rope_export.errors import UnavailableError
from rope_export.runtimes import find_runtime
from rope_export.sessions import Session, open_session


def open_on(opened: Folder, runtime: str, threads: int | None = None) -> Session:
    """A session on one runtime. threads: that a call may use; all cores unless given.

    Raises: UnavailableError with the reason if it cannot run here.
    """
    reason = find_runtime(runtime).unavailable(opened)
    if reason is not None:
        raise UnavailableError(reason)
    return open_session(opened, runtime, threads=threads)

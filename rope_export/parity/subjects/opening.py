"""Which subject an opened folder is, and its sessions."""

from pathlib import Path

from rope_export.artifacts.folder import Folder
from rope_export.discovery import modules_of
from rope_export.errors import UnavailableError
from rope_export.parity.onnx_file.file import OnnxFile
from rope_export.parity.subject import Request, Streamed, Subject
from rope_export.runtimes import find_runtime
from rope_export.sessions import Session, open_session


def subject_of(opened: Folder | OnnxFile, request: Request) -> Subject | Streamed:
    """The subject that judges an opened folder or file: the modules of this package are asked one
    by one, by their `fits`, and `make_subject` of the one that answers makes it."""
    for module in modules_of("rope_export.parity.subjects"):
        if hasattr(module, "fits") and module.fits(opened):
            subject: Subject | Streamed = module.make_subject(opened, request)
            return subject
    raise TypeError(f"{type(opened).__name__}: no file in parity/subjects judges it")


def origin_path(name: str, request: Request, opened: Folder) -> str | None:
    """Where the "source" of an artifact or its "adapter" is: as it was asked for, or where it was
    when it was exported, if it is still there."""
    requested: str | None = getattr(request, name)
    if requested is not None:
        return requested
    path = opened.evidence.get(name)
    return path if path is not None and Path(path).exists() else None


def open_on(opened: Folder, runtime: str, threads: int | None = None) -> Session:
    """A session on one runtime. threads: that a call may use; all cores unless given.

    Raises: UnavailableError with the reason if it cannot run here.
    """
    reason = find_runtime(runtime).unavailable(opened)
    if reason is not None:
        raise UnavailableError(reason)
    return open_session(opened, runtime, threads=threads)

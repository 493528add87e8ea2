"""Which subject an opened folder or file is."""

from pathlib import Path

from rope_export.artifacts.folder import Folder
from rope_export.discovery import modules_of
from rope_export.parity.onnx_file.file import OnnxFile
from rope_export.parity.subject import Request, Streamed, Subject


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

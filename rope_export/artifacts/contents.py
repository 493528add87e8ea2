"""What lies in an artifact's folder, read so that what is hashed is what is used.

Each file is opened once, hashed through that descriptor and used from it. A link is followed only
where a cache of links has its files: Hugging Face's has `snapshots/REVISION/name`, links into
`blobs/`. Everything else that is no regular file is refused before a byte of it is read.
"""

import hashlib
import mmap
import os
import stat
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rope_export import paths
from rope_export.artifacts import external_data
from rope_export.errors import ArtifactError

MODEL = "model.onnx"
DATA = "model.onnx.data"

LARGEST_JSON = 1 << 26
"""Bytes of a manifest or of evidence; ours have some ten thousand."""

CHUNK = 1 << 20

MAPPED_ABOVE = 1 << 28
"""Bytes of weights above which their file is mapped and not read: they would be in memory twice
while a session is made. Whoever cuts short a file that is mapped ends the process that reads it."""

NOFOLLOW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)


@dataclass(frozen=True, eq=False)
class Contents:
    """The files of an ONNX model that have the hashes in its manifest.

    model: the bytes of model.onnx. data: those of model.onnx.data, of large ones mapped from the
    one descriptor that was hashed; none where the weights lie in the model.
    """

    model: bytes
    data: mmap.mmap | bytes | None
    _source: "_Open | None" = None

    def check(self) -> None:
        """Raises: ArtifactError if the mapped file was written to since it was hashed."""
        if self._source is not None:
            self._source.check()

    def write(self, folder: Path) -> None:
        """Write the files of the model into `folder`."""
        (folder / MODEL).write_bytes(self.model)
        if self.data is not None:
            with (folder / DATA).open("wb") as file:
                for at in range(0, len(self.data), CHUNK):
                    file.write(self.data[at : at + CHUNK])
            self.check()


class _Open:
    """A regular file that was opened for reading, and how it was when that was done."""

    def __init__(self, path: Path) -> None:
        """Raises: ArtifactError for what is not there, no regular file, or a link elsewhere."""
        self.path = path
        self.real = _real(path)
        try:
            self.handle = os.open(self.real, os.O_RDONLY | NOFOLLOW | getattr(os, "O_NONBLOCK", 0))
        except OSError as error:
            raise ArtifactError(f"{path}: cannot be read ({error.strerror}).") from error
        self.close = weakref.finalize(self, os.close, self.handle)
        self.before = self._state()
        if not stat.S_ISREG(os.fstat(self.handle).st_mode):
            raise ArtifactError(f"{path}: is no regular file.")

    def _state(self) -> tuple[int, ...]:
        now = os.fstat(self.handle)
        return now.st_size, now.st_mtime_ns, now.st_ctime_ns

    @property
    def size(self) -> int:
        return self.before[0]

    def check(self) -> None:
        # The count of links, and so ctime, changes when a swap deletes the file; contents do not.
        if self._state()[:2] != self.before[:2]:
            raise ArtifactError(f"{self.path}: was changed while it was read; read it again.")

    def chunks(self) -> Iterator[bytes]:
        os.lseek(self.handle, 0, os.SEEK_SET)
        while chunk := os.read(self.handle, CHUNK):
            yield chunk

    def read(self, largest: int | None = None) -> bytes:
        """Raises: ArtifactError if it has more than `largest` bytes, or cannot be read."""
        if largest is not None and self.size > largest:
            raise ArtifactError(
                f"{self.path}: has {self.size:,} bytes; what rope_export writes there has at most "
                f"{largest:,}."
            )
        try:
            return b"".join(self.chunks())
        except OSError as error:
            raise ArtifactError(f"{self.path}: cannot be read ({error.strerror}).") from error

    def map(self) -> mmap.mmap | bytes:
        if not self.size:
            return b""
        return mmap.mmap(self.handle, self.size, access=mmap.ACCESS_READ)


def _real(path: Path) -> Path:
    """The regular file that `path` is or, within the tree of a cache of links, leads to."""
    with paths.named(path):
        try:
            mode = os.lstat(path).st_mode
        except FileNotFoundError:
            raise ArtifactError(f"{path}: is missing.") from None
        if stat.S_ISREG(mode):
            return path
        if not stat.S_ISLNK(mode):
            raise ArtifactError(f"{path}: is no regular file.")
        try:
            real = Path(os.path.realpath(path, strict=True))
            mode = os.lstat(real).st_mode
        except OSError as error:
            raise ArtifactError(f"{path}: is a link that leads nowhere.") from error
    folder = Path(os.path.realpath(path.parent))
    if not stat.S_ISREG(mode) or not any(root in real.parents for root in _trees(folder)):
        raise ArtifactError(
            f"{path}: is a link to {paths.shown(real)}, which is no regular file of the cache that "
            f"the artifact lies in; an artifact holds its files. Copy it there."
        )
    return real


def _trees(folder: Path) -> Iterator[Path]:
    """The folders whose files an artifact's links may lead to: its parent, and of Hugging Face's
    cache the blobs of its own repository.

    Source: huggingface_hub, "Understand caching": models--NAME/{blobs,refs,snapshots}.
    """
    if folder.parent != folder.parent.parent:
        yield folder.parent
    for at in (folder, *folder.parents):
        if at.name == "snapshots" and folder != at:
            yield at.parent / "blobs"
            return


def read(path: Path, largest: int | None = None) -> bytes:
    """The bytes of a file in an artifact's folder.

    Raises: ArtifactError for what is not there, is refused, or is larger than `largest`.
    """
    file = _Open(path)
    try:
        return file.read(largest)
    finally:
        file.close()


def mapped(path: Path) -> mmap.mmap | bytes:
    """The bytes of a file as `read` has them; large files are mapped.

    Raises: ArtifactError for what is not there, or is refused.
    """
    file = _Open(path)
    try:
        return file.read() if file.size <= MAPPED_ABOVE else file.map()
    finally:
        file.close()


def read_verified(path: Path, sha256: str) -> bytes:
    """The bytes of a file that has this hash; of a plan, for one.

    Raises: ArtifactError if it has another, or is refused.
    """
    contents = read(path)
    if hashlib.sha256(contents).hexdigest() != sha256:
        raise mismatch(path)
    return contents


def sha256(path: Path) -> str:
    """sha256 of a file in an artifact's folder, in hexadecimal.

    Raises: ArtifactError for what is not there, or is refused.
    """
    file = _Open(path)
    try:
        return _hash(file)
    finally:
        file.close()


def verify(path: Path, expected: str) -> None:
    """Raises: ArtifactError if a file has another hash, or is refused; it is not kept."""
    if sha256(path) != expected:
        raise mismatch(path)


def model_files(folder: Path, files: Mapping[str, str]) -> Contents:
    """The files of the ONNX model in `folder`, each opened once.

    files: the sha256 of each, by name, as a manifest has them.
    Raises: ArtifactError if one has another hash than in `files`, or the model keeps weights in a
        file that the manifest does not list.
    """
    opened = {name: _Open(folder / name) for name in files}
    if len({file.real.parent.resolve() for file in opened.values()}) > 1:
        raise ArtifactError(
            f"{folder / DATA}: leads to another folder than {MODEL}; the two belong together."
        )
    model = opened[MODEL].read()
    if hashlib.sha256(model).hexdigest() != files[MODEL]:
        raise mismatch(folder / MODEL)
    opened[MODEL].close()
    try:
        outside = external_data.locations(model) - (files.keys() - {MODEL})
    except ValueError as error:
        raise ArtifactError(f"{folder / MODEL}: is not an ONNX model ({error}).") from error
    if outside:
        raise ArtifactError(
            f"{folder / MODEL}: keeps weights in {sorted(outside)[0]!r}; an artifact's weights lie "
            f"in its own {DATA} and nowhere else."
        )
    if DATA not in opened:
        return Contents(model, None)
    source = opened[DATA]
    if source.size <= MAPPED_ABOVE:
        data = source.read()
        if hashlib.sha256(data).hexdigest() != files[DATA]:
            raise mismatch(folder / DATA)
        return Contents(model, data)
    if _hash(source) != files[DATA]:
        raise mismatch(folder / DATA)
    mapped = source.map()
    source.check()
    return Contents(model, mapped, source)


def mismatch(path: Path) -> ArtifactError:
    """The error for a file whose hash is not the one in its manifest."""
    return ArtifactError(
        f"{path}: does not match the sha256 in manifest.json; it was changed, damaged or replaced "
        f"after the export. Open it again, or export it to a new folder."
    )


def _hash(file: _Open) -> str:
    digest = hashlib.sha256()
    try:
        for chunk in file.chunks():
            digest.update(chunk)
    except OSError as error:
        raise ArtifactError(f"{file.path}: cannot be read ({error.strerror}).") from error
    return digest.hexdigest()

"""Writes a folder of any kind as a whole, in place of one of its kind and of nothing else."""

import hashlib
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rope_export import paths
from rope_export.artifacts import contents, evidence, swap
from rope_export.artifacts.companions import changed
from rope_export.artifacts.evidence import EVIDENCE
from rope_export.artifacts.folder import (
    MANIFEST,
    Folder,
    parsed,
    peek,
    read_manifest,
)
from rope_export.artifacts.manifest import Facts, File
from rope_export.errors import ArtifactError
from rope_export.typed_json import text


def save(
    out: Path,
    kind: type[Folder],
    facts: Facts,
    write_files: Callable[[Path], None],
    measured: Mapping[str, Any],
) -> Folder:
    """Write a folder to `out`, in place of the one that is there, as a whole or not at all.

    facts: its manifest, without files. write_files: writes the files that the manifest lists into
    the folder it is given. measured: the first evidence.
    Raises: InputError if `out` holds something else; then nothing is written.
    """
    place = check_target(out, kind)
    written = []
    old = _existing(place)
    seen = None if old is None else changed(place, old.companions)

    def fill(folder: Path) -> None:
        write_files(folder)
        names = [x for x in (*kind.required, *kind.optional) if (folder / x).exists()]
        with ThreadPoolExecutor(1) as pool:  # the disk works while hashes are computed
            stored = pool.map(swap.sync, [folder / name for name in names])
            files = {
                name: File(sha256=file_hash(folder / name), bytes=(folder / name).stat().st_size)
                for name in names
            }
            list(stored)
        whole = text(kind.listed(facts, files, folder, old))
        (folder / MANIFEST).write_text(whole, encoding="utf-8")
        evidence.write(folder, measured)
        written.append(peek(folder))

    def check(folder: Path) -> None:
        check_folder(folder, kind=kind)
        if old is not None and changed(folder, old.companions) != seen:
            raise ArtifactError(f"{paths.shown(out)}: was edited meanwhile. Export it again.")

    swap.replace(place, fill, check)
    return written[0].moved(out if out.exists() else place)


def _existing(place: Path) -> Folder | None:
    """The folder that is there now, if there is one."""
    if not (place / MANIFEST).is_file():
        return None
    try:
        return parsed(place, read_manifest(place))
    except ArtifactError:
        return None


def check_target(out: Path, kind: type[Folder]) -> Path:
    """The real place of `out`, after clearing what killed writers left in it.

    Raises: InputError if saving to `out` would lose something that is not such a folder, or cannot
        work.
    """
    place = paths.target(out, kind.title)
    swap.heal(place)
    if place.exists():
        swap.clear(place)
        _check_settled(place, kind, out)
    return place


def _check_settled(place: Path, kind: type[Folder], name: Path) -> None:
    """`check_folder`, again where another process has put its own in the place meanwhile: files of
    two of them do not go together."""
    while place.exists():
        before = _identity(place)
        try:
            return check_folder(place, kind=kind, name=name)
        except (ArtifactError, FileNotFoundError):
            if _identity(place) == before:
                raise


def _identity(place: Path) -> tuple[int, int] | None:
    """What another folder in the same place has not; nothing where there is none."""
    try:
        facts = place.stat()
    except FileNotFoundError:
        return None
    return facts.st_ino, facts.st_ctime_ns


def check_folder(folder: Path, *, kind: type[Folder], name: Path | None = None) -> None:
    """Raises: ArtifactError if the folder holds anything but a whole one of this kind.

    name: how the user calls it.
    """
    name = name or folder
    _check_names(folder, name, kind)
    if not any(swap.foreign(folder)):
        return
    try:
        existing = parsed(folder, read_manifest(folder))
        if not isinstance(existing, kind):
            raise ArtifactError(f"{folder / MANIFEST}: is that of {existing.title}")
        for file, facts in existing.facts.files.items():
            contents.verify(folder / file, facts.sha256)
        for file in kind.optional:
            if os.path.lexists(folder / file) and file not in existing.facts.files:
                raise ArtifactError(f"{name}: its {MANIFEST} does not list {file}.")
        evidence.read(folder)
        if existing.artifact is not existing:
            inner = existing.artifact
            check_folder(inner.path, kind=type(inner))
            for file in changed(inner.path, inner.companions):
                raise ArtifactError(f"{inner.path / file}: was edited")
    except ArtifactError as error:
        raise ArtifactError(
            f"{paths.shown(name)}: is not {kind.title} as rope_export wrote it, and would be lost "
            f"({error}). Give a new folder, or move it away."
        ) from error


def _check_names(folder: Path, name: Path, kind: type[Folder]) -> None:
    """Raises: ArtifactError if the folder is none, or holds a name that its kind has not, a link,
    or no manifest."""
    if folder.is_symlink() or not folder.is_dir():
        raise ArtifactError(f"{name}: is a file; {kind.title} is a folder. Give another path.")
    allowed = {file.partition("/")[0] for file in (*kind.required, *kind.optional)}
    existing = _existing(folder)
    if isinstance(existing, kind):
        allowed |= existing.companions.keys()
    entries = list(swap.foreign(folder))
    others = [path.name for path in entries if path.name not in allowed | {MANIFEST, EVIDENCE}]
    links = [path.name for path in entries if path.is_symlink()]
    if others or links:
        what = f"which is not part of {kind.title}" if others else "a link"
        raise ArtifactError(
            f"{paths.shown(name)}: holds {(others or links)[0]!r}, {what} and would be lost. Give "
            f"a new folder, or move it away."
        )
    if entries and not (folder / MANIFEST).is_file():
        raise ArtifactError(
            f"{paths.shown(name)}: is not {kind.title} and not empty. Give another path."
        )


def file_hash(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

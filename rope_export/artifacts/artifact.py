"""An artifact: a folder with an ONNX model, what is true of it, and what was measured on it.

manifest.json holds facts that are the same for the same inputs; evidence.json what was measured.
Reading one needs neither torch nor onnx. An artifact is told by what its files hold, not by their
names: only what is ours is ever replaced, and evidence counts for the files whose hashes it names.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self, TypeVar

from rope_export import paths
from rope_export.artifacts import contents, swap
from rope_export.artifacts.contents import DATA, MODEL, Contents
from rope_export.artifacts.manifest import Manifest
from rope_export.errors import ArtifactError, InputError

MANIFEST = "manifest.json"
EVIDENCE = "evidence.json"
FILES = (MODEL, DATA, MANIFEST, EVIDENCE)

EVIDENCE_KIND = "rope_export evidence"
MEASURED = {"kind", "files", "source", "parity", "proven", "tuning", "numbers"}
"""What evidence.json may hold."""

TRIES = 100
"""How often a folder that others keep replacing is read, until it was whole once."""

Found = TypeVar("Found")


@dataclass(frozen=True)
class Artifact:
    """An artifact on the disk, its files verified against its manifest when it was opened.

    digest: sha256 of its manifest.json. It stands for these files: where the folder holds others
    later, it does not read them. held: its files, where they were read to be kept; see `hold`.
    """

    path: Path
    manifest: Manifest
    digest: str = ""
    held: Contents | None = field(default=None, compare=False, repr=False)

    @property
    def model(self) -> Path:
        return self.path / MODEL

    @property
    def hashes(self) -> dict[str, str]:
        """sha256 of every file that evidence is about, by name."""
        return {name: str(facts["sha256"]) for name, facts in self.manifest.files.items()}

    @property
    def evidence(self) -> dict[str, Any]:
        """What was measured on these very files so far; empty if nothing was.

        Raises: ArtifactError for a file of that name that is not evidence.
        """
        path = self.path / EVIDENCE
        if not os.path.lexists(path):
            return {}
        found = evidence_in(path)
        if found.get("files", self.hashes) != self.hashes:
            return {}
        named = {n: x["files"] for n, x in found.items() if isinstance(x, dict) and "files" in x}
        model = {n: str(facts["sha256"]) for n, facts in self.manifest.files.items()}
        return {
            name: value
            for name, value in found.items()
            if name not in ("kind", "files") and named.get(name, model) == model
        }

    def record(self, **measured: Any) -> str | None:
        """Add to what was measured, replacing what has the same name.

        Returns: why it could not be kept, or nothing: the folder may hold another artifact by now,
            or take no file.
        """
        folder = Path(os.path.realpath(self.path))
        try:
            with swap.locked(folder.parent):
                if hashlib.sha256(_manifest(self.path)).hexdigest() != self.digest:
                    return f"{self.path}: was replaced since; the verdict is not kept there."
                kept = {"kind": EVIDENCE_KIND, "files": self.hashes, **self.evidence, **measured}
                swap.write(folder / EVIDENCE, json.dumps(kept, indent=1) + "\n")
        except OSError as error:
            return f"{self.path}: the verdict is not kept there ({error.strerror})."
        except InputError as error:
            return f"{error} The verdict is not kept there."
        return None

    def read(self) -> Contents:
        """The ONNX model's files, which are those of the manifest.

        Raises: ArtifactError if the folder holds others by now.
        """
        if self.held is not None:
            return self.held
        return contents.model_files(self.model.parent, self.manifest.files, self.path / MANIFEST)

    def hold(self) -> Self:
        """The same with its files in memory, so that they are what is used whatever happens to the
        folder; large weights are mapped."""
        return replace(self, held=self.read())

    def copied(self, folder: Path) -> "Artifact":
        """A copy of the files and of where they come from, for what takes only paths."""
        self.read().write(folder)
        text = _manifest(self.path)
        if hashlib.sha256(text).hexdigest() != self.digest:
            raise contents.mismatch(self.path / MANIFEST)
        (folder / MANIFEST).write_bytes(text)
        write_evidence(folder, {k: v for k, v in self.evidence.items() if k == "source"})
        return Artifact(folder, self.manifest, self.digest)

    @classmethod
    def open(cls, path: "str | Path | Artifact") -> "Artifact":
        """The artifact at `path`, after finishing an interrupted save and checking every hash;
        of an engine's folder an Engine, which is an artifact as well.

        Raises: ArtifactError if it is not one, or its files are not what its manifest says.
        """
        folder = path.path if isinstance(path, Artifact) else Path(path)
        return replace(cls.holding(folder), held=None)

    @classmethod
    def holding(cls, path: Path) -> "Artifact":
        """The artifact at `path` with its files in memory; see `open` and `hold`."""
        return steady(path, lambda: cls.peek(path).hold())

    @classmethod
    def peek(cls, path: Path) -> "Artifact":
        """The artifact at `path` by its manifest alone; its files are checked when they are read.

        Raises: ArtifactError if there is none.
        """
        with paths.named(path):
            swap.heal(path)
            if not os.path.lexists(path / MANIFEST):
                raise ArtifactError(
                    f"{paths.shown(path)}: is not an artifact folder; it has no {MANIFEST}."
                )
            text = _manifest(path)
        facts = contents.parsed(text, path / MANIFEST)
        digest = hashlib.sha256(text).hexdigest()
        if facts.get("kind") == "engine":
            from rope_export.engines.plan import Engine

            return Engine.read_manifest(path, facts, digest)
        return cls(path, Manifest.from_json(facts, path / MANIFEST), digest)


def _manifest(path: Path) -> bytes:
    return contents.read(path / MANIFEST, contents.LARGEST_JSON)


def steady(path: Path, read: Callable[[], Found]) -> Found:
    """What `read` finds in a folder that others may be replacing meanwhile: the old one or the new
    one, but no mixture.

    Raises: ArtifactError as `read` does, if nothing was replaced while it read.
    """
    for _ in range(TRIES):
        before = _identity(path)
        try:
            return read()
        except ArtifactError:
            if _identity(path) == before:
                raise
    return read()


def _identity(path: Path) -> list[tuple[int, ...] | None]:
    """What changes when the folder or its manifest is replaced."""
    found: list[tuple[int, ...] | None] = []
    for one in (path, path / MANIFEST):
        try:
            state = os.stat(one)
        except (OSError, ValueError):
            found.append(None)
            continue
        found.append((state.st_dev, state.st_ino, state.st_mtime_ns))
    return found


def evidence_in(path: Path) -> dict[str, Any]:
    """What a file of evidence holds.

    Raises: ArtifactError if it is none of ours.
    """
    found = contents.parsed(contents.read(path, contents.LARGEST_JSON), path)
    strange = sorted(found.keys() - MEASURED)
    if strange and found.get("kind") != EVIDENCE_KIND:
        raise ArtifactError(f"{path}: holds {strange[0]!r}, which is no evidence of ours.")
    return found


def write_evidence(folder: Path, measured: Mapping[str, Any]) -> None:
    """Write the evidence of a folder that is being made."""
    text = json.dumps({"kind": EVIDENCE_KIND, **measured}, indent=1) + "\n"
    (folder / EVIDENCE).write_text(text, encoding="utf-8")


def save(
    path: Path, manifest: Manifest, write_model: Callable[[Path], None], evidence: dict[str, Any]
) -> Artifact:
    """Write an artifact to `path`, in place of the one that is there, as a whole or not at all.

    write_model: writes model.onnx, and model.onnx.data if large, into the folder it is given.
    Raises: InputError if `path` holds something else; then nothing is written.
    """
    place = check_target(path)
    written = []

    def fill(folder: Path) -> None:
        write_model(folder)
        files = {
            name: {"sha256": file_hash(folder / name), "bytes": (folder / name).stat().st_size}
            for name in (MODEL, DATA)
            if (folder / name).exists()
        }
        facts = {**manifest.to_json(), "files": files}
        (folder / MANIFEST).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        write_evidence(folder, evidence)
        written.append(Artifact.open(folder))

    swap.replace(place, fill, check_folder)
    return replace(written[0], path=path if path.exists() else place)


def check_target(path: Path) -> Path:
    """The real place of `path`, after clearing what killed writers left in it.

    Raises: InputError if saving to `path` would lose something that is not an artifact, or cannot
        work.
    """
    place = paths.target(path, "an artifact")
    swap.heal(place)
    if place.exists():
        swap.clear(place)
        check_folder(place, path)
    return place


def check_folder(folder: Path, given: Path | None = None) -> None:
    """Raises: ArtifactError if the folder holds anything but a whole artifact.

    given: how the user calls it.
    """
    name = given or folder
    check_names(folder, name, FILES, "an artifact")
    if not any(swap.foreign(folder)):
        return
    try:
        own = Manifest.from_json(contents.parsed(_manifest(folder), folder / MANIFEST), name)
        for file in own.files:
            contents.verify(folder / file, own.files[file]["sha256"])
        if not {MODEL} <= own.files.keys() <= {MODEL, DATA}:
            raise ArtifactError(f"{name}: its {MANIFEST} does not list {MODEL}.")
        if os.path.lexists(folder / DATA) and DATA not in own.files:
            raise ArtifactError(f"{name}: its {MANIFEST} does not list {DATA}.")
        if os.path.lexists(folder / EVIDENCE):
            evidence_in(folder / EVIDENCE)
    except ArtifactError as error:
        raise not_ours(name, "an artifact", error) from error


def not_ours(name: Path, kind: str, why: Exception) -> ArtifactError:
    """The error for a folder that looks like an artifact and is not one."""
    return ArtifactError(
        f"{paths.shown(name)}: is not {kind} as rope_export wrote it, and would be lost ({why}). "
        f"Give a new folder, or move it away."
    )


def check_names(folder: Path, given: Path, known: tuple[str, ...], kind: str) -> None:
    """Raises: ArtifactError if the folder is none, or holds a name that is not among the known
    ones, a link, or a manifest of nobody."""
    if folder.is_symlink() or not folder.is_dir():
        raise ArtifactError(f"{given}: is a file; {kind} is a folder. Give another --out.")
    entries = list(swap.foreign(folder))
    others = [path.name for path in entries if path.name not in known]
    links = [path.name for path in entries if path.is_symlink()]
    if others or links:
        what = f"which is not part of {kind}" if others else "a link"
        raise ArtifactError(
            f"{paths.shown(given)}: holds {(others or links)[0]!r}, {what} and would be lost. Give "
            f"a new folder, or move it away."
        )
    if entries and not (folder / MANIFEST).is_file():
        raise ArtifactError(
            f"{paths.shown(given)}: is not {kind} and not empty. Give another --out."
        )


def file_hash(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

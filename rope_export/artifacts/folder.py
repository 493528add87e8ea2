"""The one format of folders: what an artifact and an engine have in common.

manifest.json holds facts that are the same for the same inputs, with the hash of every file;
evidence.json what was measured. A folder is told by what its files hold, not by their names: only
what is ours is ever replaced, and evidence counts for the files whose hashes it names.

A package that brings kinds of folders has a module `kind.py` with the classes as KINDS, which is
found by looking.
"""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

import msgspec

from rope_export import paths
from rope_export.artifacts import contents, evidence, swap, upgrade
from rope_export.artifacts.contents import MODEL, Contents
from rope_export.artifacts.manifest import Facts, File, ModelFacts
from rope_export.errors import ArtifactError, InputError
from rope_export.typed_json import brief, parse, typed

if TYPE_CHECKING:
    from rope_export.artifacts.model_folder import ModelFolder

MANIFEST = "manifest.json"

TRIES = 100
"""How often a folder that others keep replacing is read, until it was whole once."""


F = TypeVar("F", bound=Facts)
Value = TypeVar("Value")


@dataclass(frozen=True)
class Folder(ABC, Generic[F]):
    """An open folder of some kind. Its manifest was read; its files are checked as they are read.

    facts: its manifest.json. digest: that file's sha256; it stands for all files: where the folder
    holds others later, it does not read them.

    kind: in its manifest. title: what users call it. facts_type: of its manifest. required,
    optional: files that the manifest lists.
    """

    kind: ClassVar[str]
    title: ClassVar[str]
    facts_type: ClassVar[type]
    required: ClassVar[tuple[str, ...]]
    optional: ClassVar[tuple[str, ...]] = ()

    path: Path
    facts: F
    digest: str

    @property
    @abstractmethod
    def artifact(self) -> "ModelFolder[Any]":
        """The artifact, of a layer or a decoder, that it is or holds."""

    @property
    @abstractmethod
    def runtimes(self) -> tuple[str, ...]:
        """The runtimes that the folder is made for, the best first."""

    @classmethod
    @abstractmethod
    def from_facts(cls, path: Path, facts: F, digest: str) -> Self:
        """The folder at `path` whose manifest was read.

        Raises: ArtifactError if what it holds does not belong together.
        """

    @abstractmethod
    def hold(self) -> Self:
        """The folder with its ONNX model in memory and every file checked, so that this model
        is used whatever happens to the folder; large weights are mapped."""

    @abstractmethod
    def moved(self, path: Path) -> Self:
        """The same folder under another path."""

    @property
    def companions(self) -> Mapping[str, File]:
        """Files beside ours that people may edit, as they were written, by name."""
        return {}

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a user should know of the folder as it is now, a sentence each."""
        return ()

    @classmethod
    def listed(cls, facts: F, files: Mapping[str, File], new: Path, old: Self | None) -> F:
        """The manifest of a folder `new` that is being made in place of `old`, complete.

        facts: without files. files: ours in `new`.
        """
        return msgspec.structs.replace(facts, files=dict(files))  # type: ignore[type-var]

    @property
    def manifest(self) -> ModelFacts:
        """The manifest of the ONNX model in the folder."""
        facts: ModelFacts = self.artifact.facts
        return facts

    @property
    def model(self) -> Path:
        """The path of the ONNX model."""
        return self.artifact.path / MODEL

    def read(self) -> Contents:
        """The files of the ONNX model, which are those that the manifest lists.

        Raises: ArtifactError if the folder holds others by now.
        """
        return self.artifact.read()

    @property
    def evidence(self) -> dict[str, Any]:
        """The evidence about the files that lie in the folder now; empty if there is none.

        Raises: ArtifactError for a file of that name that is not evidence.
        """
        return evidence.about(evidence.read(self.path), self.hashes, model_hashes(self))

    @property
    def hashes(self) -> dict[str, str]:
        """sha256 of every file that the folder's evidence is about, by name."""
        return model_hashes(self) | hashes(self.facts)

    def record(self, **measured: Any) -> str | None:
        """Add entries to the evidence, replacing those of the same name.

        Returns: why it could not be kept, or nothing: the folder may hold another one by now, or
            take no file.
        """
        folder = Path(os.path.realpath(self.path))
        try:
            with swap.locked(folder.parent):
                if _digest(read_manifest(self.path)) != self.digest:
                    return f"{self.path}: was replaced since; the verdict is not kept there."
                kept = {"files": self.hashes, **self.evidence, **measured}
                evidence.replace(folder, kept)
        except OSError as error:
            return f"{self.path}: the verdict is not kept there ({error.strerror})."
        except InputError as error:
            return f"{error} The verdict is not kept there."
        return None


def hashes(facts: Facts) -> dict[str, str]:
    """sha256 of each file that a manifest lists, by name."""
    return {name: file.sha256 for name, file in facts.files.items()}


def model_hashes(folder: Folder) -> dict[str, str]:
    """sha256 of each file of the ONNX model, by name."""
    return hashes(folder.manifest)


def open_folder(path: str | Path | Folder) -> Folder:
    """The folder at `path`, of any kind, after finishing an interrupted save and checking every
    hash.

    Raises: ArtifactError if it is none of ours, or a file has another hash than in the manifest.
    """
    place = path.path if isinstance(path, Folder) else Path(path)

    def checked() -> Folder:
        opened = peek(place)
        opened.hold()
        return opened

    return steady(place, checked)


def holding(path: Path) -> Folder:
    """The folder at `path` with its files in memory; see `open_folder` and `Folder.hold`."""
    return steady(path, lambda: peek(path).hold())


def peek(path: Path) -> Folder:
    """The folder at `path` by its manifest alone; its files are checked when they are read.

    Raises: ArtifactError if there is none.
    """
    with paths.named(path):
        swap.heal(path)
        if not os.path.lexists(path / MANIFEST):
            raise ArtifactError(
                f"{paths.shown(path)}: is not an artifact folder; it has no {MANIFEST}."
            )
        contents_read = read_manifest(path)
    return parsed(path, contents_read)


def read_manifest(path: Path) -> bytes:
    """The bytes of the manifest in a folder."""
    return contents.read(path / MANIFEST, contents.LARGEST_JSON)


def _digest(manifest: bytes) -> str:
    return hashlib.sha256(manifest).hexdigest()


def parsed(path: Path, manifest: bytes) -> Folder:
    """The folder at `path` that has this manifest."""
    where = path / MANIFEST
    facts = upgrade.manifest(parse(manifest, where), where)
    by_kind, kind = kinds(), facts.get("kind")
    if not isinstance(kind, str) or kind not in by_kind:
        raise ArtifactError(
            f"{where}: kind={brief(kind)}; this version of rope_export reads "
            f"{', '.join(map(repr, by_kind))}, so this is not one of its folders."
        )
    folder = by_kind[kind]
    read: Facts = typed(facts, folder.facts_type, where)
    _check_listed(folder, read.files, where)
    return folder.from_facts(path, read, _digest(manifest))


def _check_listed(kind: type[Folder], files: Mapping[str, File], where: Path) -> None:
    others = sorted(files.keys() - {*kind.required, *kind.optional})
    if others:
        raise ArtifactError(f"{where}: lists the file {others[0]!r}, which {kind.title} has not.")
    for name in kind.required:
        if name not in files:
            raise ArtifactError(f"{where}: does not list {name}; it lists {sorted(files)}.")


@cache
def kinds() -> dict[str, type[Folder]]:
    """Every kind of folder by its name: a module kind.py in a folder of this package each."""
    by_kind: dict[str, type[Folder]] = {}
    for file in sorted(Path(__file__).parents[1].glob("*/kind.py")):
        kinds: tuple[type[Folder], ...] = import_module(
            f"rope_export.{file.parent.name}.kind"
        ).KINDS
        by_kind |= {kind.kind: kind for kind in kinds}
    return by_kind


def steady(path: Path, read: Callable[[], Value]) -> Value:
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
    states: list[tuple[int, ...] | None] = []
    for one in (path, path / MANIFEST):
        try:
            state = os.stat(one)
        except (OSError, ValueError):
            states.append(None)
            continue
        states.append((state.st_dev, state.st_ino, state.st_mtime_ns))
    return states

"""A folder with an ONNX model: of an attention layer, or of a decoder."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Self, TypeVar

from rope_export.artifacts import contents, evidence, folder
from rope_export.artifacts.contents import DATA, MODEL, Contents
from rope_export.artifacts.folder import MANIFEST, Folder
from rope_export.artifacts.manifest import ModelFacts

ORIGIN = ("source", "adapter")
"""Entries of the evidence that tell where the weights are from."""

M = TypeVar("M", bound=ModelFacts)


@dataclass(frozen=True)
class ModelFolder(Folder[M]):
    """An artifact on the disk, its files verified against its manifest when it was opened.

    held: its files, where they were read to be kept; see `hold`.
    """

    required: ClassVar[tuple[str, ...]] = (MODEL,)
    optional: ClassVar[tuple[str, ...]] = (DATA,)

    held: Contents | None = field(default=None, compare=False, repr=False)

    @property
    def artifact(self) -> Self:
        return self

    @property
    def runtimes(self) -> tuple[str, ...]:
        return self.facts.runtimes

    @classmethod
    def open(cls, path: "str | Path | Folder") -> Folder:
        """The artifact at `path`, after finishing an interrupted save and checking every hash; of
        an engine's folder the engine, whose `artifact` is the one that it was built from.

        Raises: ArtifactError if it is neither, or its files do not have the hashes in its manifest.
        """
        return folder.open_folder(path)

    @classmethod
    def from_facts(cls, path: Path, facts: M, digest: str) -> Self:
        return cls(path, facts, digest)

    def read(self) -> Contents:
        if self.held is not None:
            return self.held
        return contents.model_files(self.path, folder.hashes(self.facts))

    def read_model(self) -> bytes:
        """The bytes of the model alone, without those of weights in a file of their own.

        Raises: ArtifactError if the folder holds another one by now.
        """
        if self.held is not None:
            return self.held.model
        return contents.read_verified(self.path / MODEL, self.facts.files[MODEL].sha256)

    def hold(self) -> Self:
        return replace(self, held=self.read())

    def moved(self, path: Path) -> Self:
        return replace(self, path=path)

    def copied(self, place: Path) -> Self:
        """A copy of the files and of where they come from, for what takes only paths; of the files
        beside them as they are now.

        Raises: ArtifactError if the folder holds others by now.
        """
        self.read().write(place)
        for name in self.companions:
            if (self.path / name).exists():
                (place / name).write_bytes(contents.read(self.path / name))
        (place / MANIFEST).write_bytes(contents.read_verified(self.path / MANIFEST, self.digest))
        evidence.write(place, {n: x for n, x in self.evidence.items() if n in ORIGIN})
        return type(self)(place, self.facts, self.digest)

"""An artifact: a folder with an ONNX model, what is true of it, and what was measured on it.

Reading one needs neither torch nor onnx.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from rope_export.artifacts import contents, evidence, folder, saving
from rope_export.artifacts.contents import DATA, MODEL, Contents
from rope_export.artifacts.folder import MANIFEST, Folder
from rope_export.artifacts.manifest import KIND, Manifest


@dataclass(frozen=True)
class Artifact(Folder[Manifest]):
    """An artifact on the disk, its files verified against its manifest when it was opened.

    held: its files, where they were read to be kept; see `hold`.
    """

    kind: ClassVar[str] = KIND
    title: ClassVar[str] = "an artifact"
    facts_type: ClassVar[type] = Manifest
    required: ClassVar[tuple[str, ...]] = (MODEL,)
    optional: ClassVar[tuple[str, ...]] = (DATA,)

    held: Contents | None = field(default=None, compare=False, repr=False)

    @property
    def artifact(self) -> "Artifact":
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
    def from_facts(cls, path: Path, facts: Manifest, digest: str) -> "Artifact":
        return cls(path, facts, digest)

    def read(self) -> Contents:
        if self.held is not None:
            return self.held
        return contents.model_files(self.path, folder.hashes(self.facts))

    def hold(self) -> Self:
        return replace(self, held=self.read())

    def moved(self, path: Path) -> Self:
        return replace(self, path=path)

    def copied(self, place: Path) -> "Artifact":
        """A copy of the files and of where they come from, for what takes only paths.

        Raises: ArtifactError if the folder holds others by now.
        """
        self.read().write(place)
        (place / MANIFEST).write_bytes(contents.read_verified(self.path / MANIFEST, self.digest))
        evidence.write(place, {n: x for n, x in self.evidence.items() if n == "source"})
        return Artifact(place, self.facts, self.digest)


def save(
    path: Path,
    manifest: Manifest,
    write_model: Callable[[Path], None],
    measured: Mapping[str, Any],
) -> Artifact:
    """Write an artifact to `path`; see `folder.save`.

    write_model: writes model.onnx, and model.onnx.data if large, into the folder it is given.
    """
    return saving.save(path, Artifact, manifest, write_model, measured).artifact

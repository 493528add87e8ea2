"""An artifact: a folder with an ONNX model, what is true of it, and what was measured on it.

Reading one needs neither torch nor onnx.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from rope_export.artifacts import saving
from rope_export.artifacts.folder import Folder
from rope_export.artifacts.manifest import KIND, Manifest
from rope_export.artifacts.model_folder import ModelFolder
from rope_export.errors import InputError


@dataclass(frozen=True)
class Artifact(ModelFolder[Manifest]):
    """The artifact of an attention layer."""

    kind: ClassVar[str] = KIND
    title: ClassVar[str] = "an artifact"
    facts_type: ClassVar[type] = Manifest


def save(
    path: Path,
    manifest: Manifest,
    write_model: Callable[[Path], None],
    measured: Mapping[str, Any],
) -> Artifact:
    """Write an artifact to `path`; see `folder.save`.

    write_model: writes model.onnx, and model.onnx.data if large, into the folder it is given.
    """
    saved = saving.save(path, Artifact, manifest, write_model, measured)
    assert isinstance(saved, Artifact)
    return saved


def layer_of(opened: Folder) -> Artifact:
    """The attention layer's artifact that a folder is or holds.

    Raises: InputError for a decoder's.
    """
    artifact = opened.artifact
    if not isinstance(artifact, Artifact):
        raise InputError(
            f"{opened.path}: is {artifact.title}, and this takes the artifact of an attention "
            f"layer. Export one with `layer`."
        )
    return artifact

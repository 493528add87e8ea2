"""Files beside a model that people edit: listed with the hashes they were written with."""

import os
from collections.abc import Mapping
from pathlib import Path

from rope_export import paths
from rope_export.artifacts import contents
from rope_export.artifacts.contents import DATA, MODEL
from rope_export.artifacts.evidence import EVIDENCE
from rope_export.artifacts.manifest import File
from rope_export.errors import ArtifactError

MANIFEST = "manifest.json"
OURS = frozenset({MODEL, DATA, MANIFEST, EVIDENCE})
"""Files of a folder that are no companions."""


def changed(folder: Path, companions: Mapping[str, File]) -> dict[str, str]:
    """sha256 of each companion in `folder` that is not what was written; one that is gone is left
    out.

    Raises: ArtifactError for one that is no regular file.
    """
    found = {}
    for name, written in companions.items():
        if os.path.lexists(folder / name):
            now = contents.sha256(folder / name)
            if now != written.sha256:
                found[name] = now
    return found


def warnings(folder: Path, companions: Mapping[str, File]) -> tuple[str, ...]:
    """A sentence on each companion that was changed, or is gone or unreadable."""
    sentences = []
    for name, written in companions.items():
        where = paths.shown(folder / name)
        try:
            if not os.path.lexists(folder / name):
                sentences.append(f"{where}: is missing; the export had written it.")
            elif changed(folder, {name: written}):
                sentences.append(
                    f"{where}: was edited; it is not what the export wrote, and a new one keeps it."
                )
        except ArtifactError as error:
            sentences.append(str(error))
    return tuple(sentences)


def written(folder: Path) -> dict[str, File]:
    """Hash and size of each companion in a folder that is being made, by name."""
    return {
        path.name: File(sha256=contents.sha256(path), bytes=path.stat().st_size)
        for path in sorted(folder.iterdir())
        if path.name not in OURS
    }


def keep(old: Path, companions: Mapping[str, File], new: Path) -> dict[str, File]:
    """Copy to the folder `new` what was changed among the companions of the folder `old`, in place
    of what is there.

    Returns: what was kept, as it was written once.
    """
    kept = {name: companions[name] for name in changed(old, companions)}
    for name in kept:
        (new / name).write_bytes(contents.read(old / name))
    return kept

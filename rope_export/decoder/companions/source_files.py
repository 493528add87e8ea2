"""The files that lie beside a source's config.json."""

import json
from pathlib import Path
from typing import Any

from rope_export.checkpoints.checkpoint import Checkpoint
from rope_export.checkpoints.locators import Folder, Locator
from rope_export.checkpoints.model import Model
from rope_export.errors import CheckpointError


def locator_of(source: Model) -> Locator | None:
    """The way to the files beside a source; none beside a GGUF file, and beside a config file only
    if its name is config.json."""
    if isinstance(source, Checkpoint):
        return source.locator
    path = Path(source.path)
    return Folder(path.parent) if path.name == "config.json" else None


def read_json(path: Path) -> dict[str, Any]:
    """Raises: CheckpointError for a file that holds no JSON object."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: is not a JSON file ({error}).") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: must hold a JSON object.")
    return values

"""JSON files as bytes."""

import json
from pathlib import Path
from typing import Any

from rope_export.errors import CheckpointError


def written(values: dict[str, Any]) -> bytes:
    """The contents of a JSON file, the same for the same values."""
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()


def read(path: Path) -> dict[str, Any]:
    """Raises: CheckpointError for a file that holds no JSON object."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: is not a JSON file ({error}).") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: must hold a JSON object.")
    return values

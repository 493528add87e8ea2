"""Folders that transformers can read: the source's own, or one made for a config alone."""

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def config_folder(facts: Mapping[str, Any]) -> Iterator[Path]:
    """A folder with nothing but this config.json, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="rope_export-") as folder:
        Path(folder, "config.json").write_text(json.dumps(facts), encoding="utf-8")
        yield Path(folder)

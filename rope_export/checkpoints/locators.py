"""Finds the files of a checkpoint by name, in a folder or on a hub."""

import errno
from pathlib import Path
from typing import Protocol

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
KEY = "transformers_weights"
"""The config key that names another file or index than these two."""


class Locator(Protocol):
    """Finds a checkpoint's files by name: in a folder, or on a hub that fetches them."""

    def find(self, name: str) -> Path | None:
        """The file called `name`, or nothing if the checkpoint has none."""

    def listed(self) -> tuple[str, ...] | None:
        """Names of the files that are there, or nothing where asking for each would fetch it."""

    def folders_with(self, name: str) -> tuple[str, ...]:
        """Names of the folders in it that have a file `name`, as far as they can be looked at."""


class Folder:
    """A checkpoint on this machine."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def find(self, name: str) -> Path | None:
        path = self.path / name
        try:
            return path if path.is_file() else None
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:  # nothing can be called so
                return None
            raise

    def listed(self) -> tuple[str, ...]:
        return tuple(sorted(path.name for path in self.path.iterdir()))

    def folders_with(self, name: str) -> tuple[str, ...]:
        paths = [path for kind in ("*", "snapshots/*") for path in self.path.glob(f"{kind}/{name}")]
        return tuple(sorted(str(path.parent.relative_to(self.path)) for path in paths))

    def __str__(self) -> str:
        return str(self.path)

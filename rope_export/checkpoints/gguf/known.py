"""The architectures of GGUF files that are read, found by looking into this folder."""

from rope_export.checkpoints.gguf.base import Architecture
from rope_export.discovery import modules_of


def every_architecture() -> dict[str, Architecture]:
    """Every architecture by its names: constants of this folder's files."""
    architectures: dict[str, Architecture] = {}
    for module in modules_of(__package__):
        for value in vars(module).values():
            if isinstance(value, Architecture):
                architectures |= dict.fromkeys(value.names, value)
    return architectures

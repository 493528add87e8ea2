"""The formats of quantized checkpoints that there are, found by looking into this folder."""

from rope_export.checkpoints.quantized.base import Format
from rope_export.discovery import modules_of


def every_format() -> list[type[Format]]:
    """Every format: one file of this folder each."""
    formats: dict[str, type[Format]] = {}
    for module in modules_of(__package__):
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, Format) and value is not Format:
                formats[value.__name__] = value
    return list(formats.values())

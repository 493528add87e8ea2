"""Quantized checkpoints: one file for each format."""

from rope_export.checkpoints.quantized.base import Format, Read
from rope_export.checkpoints.quantized.known import every_format

__all__ = ["Format", "Read", "every_format"]

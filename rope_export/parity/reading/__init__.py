"""A second truth for how configs and weights are read: transformers' own module."""

from rope_export.parity.reading.recorder import config_reads
from rope_export.parity.reading.sources import reading
from rope_export.parity.reading.verdict import Difference, Reading

__all__ = ["Difference", "Reading", "config_reads", "reading"]

"""A second truth for how configs and weights are read: transformers' own module."""

from rope_export.parity.reading.recorder import config_reads

__all__ = ["config_reads"]

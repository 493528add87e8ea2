"""transformers' own code for a config: built, watched and run on the same files as ours."""

from rope_export.reading.recorder import config_reads
from rope_export.reading.verdict import Difference, Reading

__all__ = ["Difference", "Reading", "config_reads"]

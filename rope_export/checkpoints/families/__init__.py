"""What each model family's code implies beyond its config: one file a family, or a few alike."""

from rope_export.checkpoints.families.base import Config, Facts, Family
from rope_export.checkpoints.families.known import every_family, family, towers_of
from rope_export.checkpoints.families.tables import class_defaults, keys_read

__all__ = [
    "Config",
    "Facts",
    "Family",
    "class_defaults",
    "every_family",
    "family",
    "keys_read",
    "towers_of",
]

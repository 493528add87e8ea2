"""Rotary position embedding: what every variant has in common, and one file for each variant."""

from rope_export.rope.base import Layout, RopeSpec
from rope_export.rope.variants import every_variant, variant

__all__ = ["Layout", "RopeSpec", "every_variant", "variant"]

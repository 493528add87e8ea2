"""Frozen facts of one attention layer: its shapes, its rotation, and the parts around it."""

from rope_export.rope.base import Layout, RopeSpec
from rope_export.spec.attention import AttentionSpec, DType
from rope_export.spec.features import Feature
from rope_export.spec.parts import LatentSpec, NormSpec, PositionScale

__all__ = [
    "AttentionSpec",
    "DType",
    "Feature",
    "LatentSpec",
    "Layout",
    "NormSpec",
    "PositionScale",
    "RopeSpec",
]

"""Lowerings: each expresses rotation, attention and cache in the operators that a target runs well.

Each is one file of this folder and is found by looking into it.
"""

from rope_export.lowerings.base import Lowering
from rope_export.lowerings.choice import (
    lowering_for,
    lowering_for_all,
    lowerings,
    opset_of,
    refusal,
)
from rope_export.lowerings.model import lowered
from rope_export.lowerings.projections import OFFSETS, SCALES, ZERO_POINTS, packed_name

__all__ = [
    "OFFSETS",
    "SCALES",
    "ZERO_POINTS",
    "Lowering",
    "lowered",
    "lowering_for",
    "lowering_for_all",
    "lowerings",
    "opset_of",
    "packed_name",
    "refusal",
]

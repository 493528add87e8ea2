"""Rotations: every variant there is, its own parameters drawn by their types."""

from dataclasses import fields
from typing import Any, get_args, get_origin, get_type_hints

import torch

from rope_export.errors import SpecError, extra
from rope_export.rope.base import RopeSpec
from rope_export.rope.default import DefaultRope
from rope_export.rope.variants import every_variant

with extra("fuzz", "drawing examples"):
    from hypothesis import strategies as st

THETAS = (10_000.0, 100.0, 500_000.0, 1_000_000.0)
FACTORS = (1.0, 2.0, 1.5, 4.0, 8.0, 32.0)
LENGTHS = (64, 16, 8, 2_048)
"""Trained contexts, of which the shorter ones end within a call."""

OWN_PLACES = "coordinates"
"""The method of variants whose positions are something else than numbers of tokens."""


@st.composite
def rotations(draw: Any, width: int, features: frozenset[str]) -> RopeSpec:
    """The rotation of heads of `width` features, among what a lowering can express.

    features: of the lowering. Shrinks to the plain one of the whole head.
    """
    rotary_dim = width // 2 * 2
    if "partial" in features and rotary_dim > 2:
        rotary_dim = draw(st.sampled_from([rotary_dim, *range(2, rotary_dim, 2)]))
    layouts = [x for x in ("half_split", "interleaved", "permuted") if f"layout {x}" in features]
    common: dict[str, Any] = {
        "rotary_dim": rotary_dim,
        "theta": draw(st.sampled_from(THETAS)),
        "layout": draw(st.sampled_from(layouts)),
        "clockwise": "clockwise" in features and draw(st.booleans()),
    }
    pairs = rotary_dim // 2
    if "axes" in features and draw(st.booleans()):
        axes = st.lists(st.integers(0, 2), min_size=pairs, max_size=pairs)
        common["pair_axes"] = tuple(draw(axes))
    return _variant(draw, common) or DefaultRope(**common)


def _variant(draw: Any, common: dict[str, Any]) -> RopeSpec | None:
    """A variant with these facts; none where it does not take them."""
    plain = [cls for cls in every_variant().values() if OWN_PLACES not in vars(cls)]
    cls = draw(st.sampled_from(sorted(plain, key=_plainest)))
    hints, shared = get_type_hints(cls), {x.name for x in fields(RopeSpec)}
    own = [x.name for x in fields(cls) if x.name not in shared]
    values = {name: draw(_parameter(name, hints[name], common["rotary_dim"] // 2)) for name in own}
    try:
        rope = cls(**common, **values)
        table = rope.inv_freq()
    except SpecError:
        return None
    pairs = common["rotary_dim"] // 2
    return rope if len(table) == pairs and bool(torch.isfinite(table).all()) else None


def _plainest(cls: type[RopeSpec]) -> tuple[bool, str]:
    return cls is not DefaultRope, cls.rope_type


def _parameter(name: str, kind: Any, pairs: int) -> st.SearchStrategy[Any]:
    """Values of a variant's own field, by its type; a number that is a length is one of tokens."""
    options = get_args(kind)
    if type(None) in options:
        (inner,) = (x for x in options if x is not type(None))
        return st.none() | _parameter(name, inner, pairs)
    if get_origin(kind) is tuple:
        return st.lists(st.sampled_from(FACTORS), min_size=pairs, max_size=pairs).map(tuple)
    if kind is bool:
        return st.booleans()
    if "length" in name or "position" in name:
        return st.sampled_from(LENGTHS).map(kind)
    return st.integers(1, pairs) if kind is int else st.sampled_from(FACTORS)

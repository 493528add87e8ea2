"""Rotation: what the positions of one call do to its queries and keys.

Shapes as in `attention.layer`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rope_export.spec import AttentionSpec, PositionScale, RopeSpec


@dataclass(frozen=True, kw_only=True)
class Rotation:
    """cos and sin of the angles of a call's new tokens, and the factor on their queries.

    It depends on the positions and on what `rotation_facts` names of a spec, so layers that agree
    in that can share one.

    facts: `rotation_facts` of the spec that it was computed for. cos, sin: (B, S, R / 2), of the
    layer's dtype; none without a rotation. query_factor: float32 (B, S), or none.
    """

    facts: tuple[object, ...]
    cos: Tensor | None = None
    sin: Tensor | None = None
    query_factor: Tensor | None = None


def rotation_facts(spec: AttentionSpec) -> tuple[object, ...]:
    """What a `Rotation` depends on of a spec; it can serve every layer in which this is equal."""
    return spec.rope, spec.position_scale, spec.dtype


def cos_sin_of(
    rope: RopeSpec, inv_freq: Tensor, position_ids: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """cos and sin of every pair's angle: two (B, S, R / 2) of `dtype`.

    inv_freq: float32, `rope.table()`. position_ids: (B, S) or (A, B, S).
    Error: the float32 angle is off by at most |position| * 2**-24 rad, as in trained models.
    """
    if rope.depends_on_length:
        inv_freq = rope.chosen(inv_freq, position_ids.max() + 1)
    at = rope.coordinates(position_ids)
    if rope.axes > 1:
        axis = torch.tensor(rope.pair_axes, device=position_ids.device)
        angles = at.index_select(0, axis).permute(1, 2, 0) * inv_freq
    else:
        angles = at[..., None] * inv_freq
    cos, sin = angles.cos(), angles.sin()
    if rope.attention_factor != 1.0:
        cos, sin = cos * rope.attention_factor, sin * rope.attention_factor
    return cos.to(dtype), (-sin if rope.clockwise else sin).to(dtype)


def query_factor_of(scale: PositionScale, position_ids: Tensor) -> Tensor:
    """What queries are multiplied by at their positions: float32 (B, S)."""
    lengths = (position_ids.float() + scale.offset) / scale.length
    if scale.form == "log":
        return 1 + scale.beta * torch.log1p(lengths.floor())
    return torch.exp(scale.beta * torch.log1p(lengths))

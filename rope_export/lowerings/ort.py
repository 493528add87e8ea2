"""onnxruntime's own operator for grouped-query attention with a cache."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor

from rope_export.attention import operators
from rope_export.attention.request import (
    AttentionRequest,
    FixedCache,
    NoCache,
    Slots,
    Visibility,
    visibility_facts,
)
from rope_export.lowerings.base import LAYOUTS, PLAIN_TORCH, Lowering, halves
from rope_export.spec import AttentionSpec, RopeSpec

DOMAIN = "com.microsoft"

HEAD_SIZES = 8
"""GroupQueryAttention takes multiples of this alone, and reports it only when it runs."""

ROTATED_HEAD_SIZES = 16
"""It takes multiples of this alone where it rotates itself."""

LARGEST_WINDOW = 2**31 - 1
"""The operator keeps its window in 32 bits; a longer one sees every slot that there can be."""


class Ort(Lowering):
    """com.microsoft GroupQueryAttention between matrix products, RotaryEmbedding-23 before it.

    The rotation lies outside the operator. Inside, it would count positions from the cache, or
    rotate every row by the first one's position_ids, and it takes tables of cos and sin that end
    somewhere and do not know dynamic or longrope; outside costs two small nodes and honours any
    position. A whole decoder has both forms, and takes the one inside where that is right.
    """

    name = "ort"
    caches: ClassVar[Mapping[str, int]] = {"none": 23, "growing": 23, "fixed": 23}
    has_rms_norm: ClassVar[bool] = True
    packs: ClassVar[bool] = True
    runtimes: ClassVar[tuple[str, ...]] = ("onnxruntime", "onnxruntime:cuda")
    # query_seqlens, without which chunks of several rows on a cache are refused.
    needs: ClassVar[Mapping[str, str]] = {"onnxruntime": "1.32"}
    quantizes: ClassVar[bool] = True
    stale_slots: ClassVar[Literal["any", "finite"]] = "any"
    heads_axis: ClassVar[int] = 2

    features: ClassVar[frozenset[str]] = (
        PLAIN_TORCH
        | LAYOUTS
        | {
            *("partial", "group", "scale", "softcap", "sinks"),
            *("causal", "bidirectional", "window", "window_after", "chunk"),
        }
    )
    reasons: ClassVar[Mapping[str, str]] = {
        "latent": "GroupQueryAttention caches keys",
        "value width": "GroupQueryAttention has one head size",
    }

    def limit(self, spec: AttentionSpec, cache: str) -> str | None:
        if spec.head_dim % HEAD_SIZES:
            return f"head_dim={spec.head_dim}: GroupQueryAttention takes multiples of {HEAD_SIZES}"
        return None

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor, rope: RopeSpec) -> Tensor:
        heads, width = x.shape[2], x.shape[3]
        if rope.layout == "permuted":
            x = halves(x, rope)
        rotated = torch.onnx.ops.symbolic(
            "::RotaryEmbedding",
            (self.join(x), cos, sin),
            {
                "num_heads": heads,
                "interleaved": int(rope.layout == "interleaved"),
                "rotary_embedding_dim": 0 if rope.rotary_dim == width else rope.rotary_dim,
            },
            dtype=x.dtype,
            shape=(*x.shape[:2], heads * width),
            version=23,
        )
        return self.split(rotated, width)

    def bias_is_padding(self, spec: AttentionSpec) -> bool:
        unbounded = spec.window is None and spec.window_after is None
        return spec.chunk is None and (spec.causal or unbounded)

    def rotates_inside(self, spec: AttentionSpec) -> bool:
        rope = spec.rope
        if rope is None or rope.depends_on_length or rope.axes > 1 or spec.position_scale:
            return False
        return rope.rotary_dim == spec.head_dim and spec.head_dim % ROTATED_HEAD_SIZES == 0

    def visibility(self, slots: Slots, spec: AttentionSpec) -> Visibility:
        """Causality, its windows, softcap and sinks are the operator's own; padding, chunks and
        windows of a layer that sees later tokens make a bias. Tokens that may see nothing are
        zeroed afterwards."""
        bias = sees_any = None
        padded = slots.attention_mask is not None
        if padded or not self.bias_is_padding(spec):
            allowed = operators.allowed_in(slots, spec)
            dtype: torch.dtype = getattr(torch, spec.dtype)
            # Half the lowest number: a score added to it must not be infinite.
            bias = torch.where(allowed, 0.0, torch.finfo(dtype).min / 2).to(dtype)
            if padded:
                sees_any = allowed.any(dim=-1)[:, 0, :, None, None]
        used, bound, new = _counts(slots)
        return Visibility(
            facts=visibility_facts(spec),
            padded=padded,
            bias=bias,
            sees_any=sees_any,
            used=used,
            bound=bound,
            new=new,
        )

    def attend(self, request: AttentionRequest) -> tuple[Tensor, Tensor, Tensor]:
        q, cache, spec, visibility = request.q, request.cache, request.spec, request.visibility
        batch, sequence = q.shape[:2]
        total = cache.slots if isinstance(cache, FixedCache) else cache.slots + sequence
        past = (None, None) if isinstance(cache, NoCache) else (cache.key, cache.value)
        before = (*(self.join(x) for x in (q, request.k, request.v)), *past)
        counts = (visibility.used, visibility.bound)
        after = (None, None, None, visibility.bias, request.sinks, None, None, None, None)
        heads, present_key, present_value = torch.onnx.ops.symbolic_multi_out(
            f"{DOMAIN}::GroupQueryAttention",
            (*before, *counts, *after, visibility.new),
            {
                "num_heads": spec.heads,
                "kv_num_heads": spec.kv_heads,
                "scale": spec.softmax_scale,
                "softcap": spec.softcap or 0.0,
                "local_window_size": _window(spec),
                "causal": int(spec.causal),
            },
            dtypes=[q.dtype] * 3,
            shapes=[
                (batch, sequence, spec.heads * spec.head_dim),
                *[(batch, spec.kv_heads, total, spec.head_dim)] * 2,
            ],
            version=1,
        )
        heads = self.split(heads, spec.head_dim)
        if visibility.sees_any is not None:
            heads = torch.where(visibility.sees_any, heads, 0.0)
        return heads, present_key, present_value


def _window(spec: AttentionSpec) -> int:
    """The operator's own window, -1 for none; where a token sees later ones, the bias has it."""
    if not spec.causal or spec.window is None:
        return -1
    return min(spec.window, LARGEST_WINDOW)


def _counts(slots: Slots) -> tuple[Tensor, Tensor, Tensor | None]:
    """seqlens_k, filled slots of each row after the call less one; total_sequence_length, a bound
    on them; and query_seqlens, new tokens of each row, which only a call with a cache may have."""
    if slots.lengths is None:
        used = torch.full((slots.batch,), slots.total - 1, dtype=torch.int32)
    else:
        used = (slots.lengths + (slots.sequence - 1)).to(torch.int32)
    bound = torch.full((), slots.total, dtype=torch.int32)
    if isinstance(slots.cache, NoCache):
        return used, bound, None
    return used, bound, torch.full((slots.batch,), slots.sequence, dtype=torch.int32)

"""The operators that ONNX has for this: RotaryEmbedding and Attention of opset 23, and for fixed
caches TensorScatter and Attention of opset 24."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from rope_export.attention import operators
from rope_export.attention.request import (
    AttentionRequest,
    FixedCache,
    GrowingCache,
    Slots,
    Visibility,
    visibility_facts,
)
from rope_export.lowerings.base import LAYOUTS, PLAIN_TORCH, Lowering, halves
from rope_export.spec import AttentionSpec, RopeSpec

ONNX_FLOAT = 1
"""TensorProto.FLOAT, the precision of the softmax."""


class Standard(Lowering):
    """RotaryEmbedding-23, and Attention-23 with past and present, or TensorScatter-24 into a fixed
    cache and Attention-24 over it."""

    name = "standard"
    caches: ClassVar[Mapping[str, int]] = {"none": 23, "growing": 23, "fixed": 24}
    has_rms_norm: ClassVar[bool] = True

    features: ClassVar[frozenset[str]] = (
        PLAIN_TORCH
        | LAYOUTS
        | {
            *("partial", "latent", "value width", "group", "scale", "softcap"),
            *("causal", "bidirectional", "window", "window_after", "chunk"),
        }
    )
    reasons: ClassVar[Mapping[str, str]] = {"sinks": "Attention-23 has no such input"}

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor, rope: RopeSpec) -> Tensor:
        if rope.layout == "permuted":
            x = halves(x, rope)
        return torch.onnx.ops.rotary_embedding(
            x,
            cos,
            sin,
            interleaved=rope.layout == "interleaved",
            rotary_embedding_dim=0 if rope.rotary_dim == x.shape[-1] else rope.rotary_dim,
        )

    def visibility(self, slots: Slots, spec: AttentionSpec) -> Visibility:
        """Plain causality is the operator's own, which counts from the past inputs, or from the
        filled slots. Windows, chunks and padding make an explicit mask; where padding leaves a
        token nothing to see, it is given every slot and then zeroed: what the operator makes of an
        empty row differs between runtimes."""
        facts, padded = visibility_facts(spec), slots.attention_mask is not None
        lengths = slots.lengths
        # MLA hands over keys without past inputs: the operator would count from the first.
        whole = lengths is None and spec.latent is not None and spec.causal
        plain = spec.window is None and spec.window_after is None and spec.chunk is None
        if plain and not padded and not whole:
            used = None if lengths is None else lengths + slots.sequence
            return Visibility(facts=facts, used=used)
        allowed = operators.allowed_in(slots, spec)
        if not padded:
            return Visibility(facts=facts, allowed=allowed)
        sees_any = allowed.any(dim=-1, keepdim=True)
        return Visibility(facts=facts, padded=True, allowed=allowed | ~sees_any, sees_any=sees_any)

    def attend(self, request: AttentionRequest) -> tuple[Tensor, Tensor, Tensor]:
        spec, visibility, cache = request.spec, request.visibility, request.cache
        k, v = request.k, request.v
        if isinstance(cache, FixedCache):
            k, v = self.extended(request)
        if visibility.used is not None:
            return _over_used(request.q, k, v, visibility.used, spec), k, v
        past = (cache.key, cache.value) if isinstance(cache, GrowingCache) else (None, None)
        mask = visibility.allowed
        operands = (request.q, k, v, mask, *past)
        heads, present_key, present_value = _attention(operands, spec, mask is None and spec.causal)
        if visibility.sees_any is not None:
            heads = torch.where(visibility.sees_any, heads, 0.0)
        return heads, present_key, present_value


def _over_used(q: Tensor, k: Tensor, v: Tensor, used: Tensor, spec: AttentionSpec) -> Tensor:
    """Causal Attention-24 over the first `used` slots of each row, int64 (B,), whose last belong to
    q; it counts causality from their end."""
    return torch.onnx.ops.symbolic(
        "::Attention",
        (q, k, v, None, None, None, used),
        _attributes(spec, True),
        dtype=q.dtype,
        shape=(*q.shape[:3], v.shape[3]),
        version=24,
    )


def _attributes(spec: AttentionSpec, is_causal: bool) -> dict[str, Any]:
    return {
        "is_causal": int(is_causal),
        "scale": spec.softmax_scale,
        "softcap": spec.softcap or 0.0,
        "softmax_precision": ONNX_FLOAT,
    }


def _attention(
    operands: tuple[Tensor | None, ...], spec: AttentionSpec, is_causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention-23. torch's own form of it takes values to be as wide as keys; where they are not,
    the operator is written by name."""
    if spec.value_head_dim == spec.head_dim:
        heads, present_key, present_value, _ = torch.onnx.ops.attention(
            *operands,  # type: ignore[arg-type]
            is_causal=is_causal,
            scale=spec.softmax_scale,
            softcap=spec.softcap or 0.0,
            softmax_precision=ONNX_FLOAT,
        )
        return heads, present_key, present_value
    q, k, v, _, past_key, past_value = operands
    assert q is not None
    assert k is not None
    assert v is not None
    shapes = [(*q.shape[:3], v.shape[3])]
    if past_key is not None and past_value is not None:
        total = past_key.shape[2] + k.shape[2]
        shapes += [(*x.shape[:2], total, x.shape[3]) for x in (k, v)]
    outputs = torch.onnx.ops.symbolic_multi_out(
        "::Attention",
        operands,
        _attributes(spec, is_causal),
        dtypes=[q.dtype] * len(shapes),
        shapes=shapes,
        version=23,
    )
    return (outputs[0], k, v) if past_key is None else tuple(outputs)  # type: ignore[return-value]

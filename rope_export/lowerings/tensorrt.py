"""Operators that TensorRT's parser takes, computes as ONNX defines them, and its builder fuses."""

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from rope_export.attention import operators
from rope_export.attention.request import AttentionRequest, Slots, Visibility, visibility_facts
from rope_export.lowerings.base import LAYOUTS, PLAIN_TORCH, Lowering, halves
from rope_export.lowerings.portable import products
from rope_export.spec import AttentionSpec, RopeSpec


class Tensorrt(Lowering):
    """RotaryEmbedding-23, Attention-23 under an explicit mask, and TensorScatter-24 for fixed
    caches, each in the form that becomes one layer of a TensorRT network.

    The operators hold less here than in `standard`. TensorRT takes no past inputs, softcap or
    softmax_precision of Attention, drops the lengths of a cache without a word, and counts
    causality from the first key; so the mask holds all of it. The file runs in onnxruntime
    too, which is how its numbers are proven without a GPU.
    """

    name = "tensorrt"
    caches: ClassVar[Mapping[str, int]] = {"none": 23, "growing": 23, "fixed": 24}
    engine: ClassVar[bool] = True

    features: ClassVar[frozenset[str]] = (
        PLAIN_TORCH
        | LAYOUTS
        | {
            *("partial", "latent", "value width", "group", "scale", "softcap", "sinks"),
            *("causal", "bidirectional", "window", "window_after", "chunk"),
        }
    )

    def limit(self, spec: AttentionSpec, cache: str) -> str | None:
        if spec.latent is not None and cache == "fixed":
            return (
                "cache 'fixed' of a latent: TensorRT's caches are (batch, heads, capacity, "
                "features); use cache 'growing'"
            )
        return None

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor, rope: RopeSpec) -> Tensor:
        """Interleaved pairs are moved to halves and back, which costs no kernel: the builder fails
        on the operator's own interleaved form before a cache that grows."""
        if rope.layout == "half_split":
            return _rotated(x, cos, sin, rope)
        rotated = _rotated(halves(x, rope), cos, sin, rope)
        if rope.layout == "permuted":
            return rotated
        pairs = rotated[..., : rope.rotary_dim].unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)
        return torch.cat((pairs, rotated[..., rope.rotary_dim :]), dim=-1)

    def visibility(self, slots: Slots, spec: AttentionSpec) -> Visibility:
        """A row that sees nothing is given every slot and then zeroed: of an empty row, runtimes
        make different things."""
        facts, padded = visibility_facts(spec), slots.attention_mask is not None
        allowed = operators.allowed_in(slots, spec)
        if not padded:
            return Visibility(facts=facts, allowed=allowed, bias=_bias(allowed, spec))
        sees_any = allowed.any(dim=-1, keepdim=True)
        bias = _bias(allowed | ~sees_any, spec)
        return Visibility(facts=facts, padded=True, allowed=allowed, bias=bias, sees_any=sees_any)

    def attend(self, request: AttentionRequest) -> tuple[Tensor, Tensor, Tensor]:
        """Scores that are capped have no operator that TensorRT takes; they become matrix products,
        which it does not fuse."""
        k, v = self.extended(request)
        if request.spec.softcap is not None:
            return products(request, k, v, self.tap), k, v
        heads = _attention(request, k, v)
        if request.visibility.sees_any is not None:
            heads = torch.where(request.visibility.sees_any, heads, 0.0)
        return heads, k, v


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, rope: RopeSpec) -> Tensor:
    """RotaryEmbedding-23 of pairs that lie in halves."""
    width = 0 if rope.rotary_dim == x.shape[-1] else rope.rotary_dim
    return torch.onnx.ops.rotary_embedding(x, cos, sin, rotary_embedding_dim=width)


def _bias(allowed: Tensor, spec: AttentionSpec) -> Tensor:
    """What is added to the scores: nothing where a slot may be seen, elsewhere half the lowest
    number of the layer's dtype.

    Half: with a score added, or in units of log2 e as kernels have it, it stays finite, and a block
    of slots that are all masked makes no NaN. It hides a slot whatever its score as long as scores
    differ by less than that half less 104, where float32's exp ends: 32,648 in float16, in which
    scores beyond 65,504 do not exist. A mask of bools means the same and costs TensorRT kernels
    of its own.
    """
    dtype: torch.dtype = getattr(torch, spec.dtype)
    return torch.where(allowed, 0.0, torch.finfo(dtype).min / 2).to(dtype)


def _attention(request: AttentionRequest, k: Tensor, v: Tensor) -> Tensor:
    """Attention-23 over all slots, k and v: (B, H, S, V).

    It has one head size, so the narrower of keys and values is filled up with zeros, which add
    nothing to a score and are cut off the output. A sink is one more slot with a key and value of
    zeros, whose score is its bias: a mask for each head, but the attention stays one operator.
    """
    q, spec, sinks, bias = request.q, request.spec, request.sinks, request.visibility.bias
    assert bias is not None
    width = v.shape[3]
    wide = max(spec.head_dim, width)
    q, k, v = (F.pad(x, (0, wide - x.shape[3])) if x.shape[3] < wide else x for x in (q, k, v))
    if sinks is not None:
        sink = sinks[None, :, None, None].expand(bias.shape[0], -1, bias.shape[2], 1)
        bias = torch.cat((bias.expand(-1, spec.heads, -1, -1), sink), dim=-1)
        k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
    heads = torch.onnx.ops.symbolic(
        "::Attention",
        (q, k, v, bias),
        {"scale": spec.softmax_scale},
        dtype=q.dtype,
        shape=(*q.shape[:3], wide),
        version=23,
    )
    return heads[..., :width] if width < wide else heads

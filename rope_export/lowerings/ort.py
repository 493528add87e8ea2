"""onnxruntime's own operator for grouped-query attention with a cache."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from rope_export.attention import operators
from rope_export.lowerings import Lowering, halves
from rope_export.spec import AttentionSpec, RopeSpec

DOMAIN = "com.microsoft"

HEAD_SIZES = 8
"""GroupQueryAttention takes multiples of this alone, and says so only when it runs."""

LARGEST_WINDOW = 2**31 - 1
"""The operator keeps its window in 32 bits; a longer one sees every slot that there can be."""


class Ort(Lowering):
    """com.microsoft GroupQueryAttention between matrix products, RotaryEmbedding-23 before it.

    The rotation lies outside the operator. Inside, it would count positions from the cache, or turn
    every row by the first one's position_ids, and it takes tables of cos and sin that end somewhere
    and do not know dynamic or longrope; outside costs two small nodes and honours any position.
    """

    name = "ort"
    caches: ClassVar[Mapping[str, int]] = {"none": 23, "growing": 23, "fixed": 23}
    runtimes: ClassVar[tuple[str, ...]] = ("onnxruntime", "onnxruntime:cuda")
    # query_seqlens, without which chunks of several rows on a cache are refused.
    needs: ClassVar[Mapping[str, str]] = {"onnxruntime": "1.32"}
    quantizes: ClassVar[bool] = True
    stale_slots: ClassVar[str] = "any"
    heads_axis: ClassVar[int] = 2

    def refusal(self, spec: AttentionSpec, cache: str) -> str | None:
        if spec.latent is not None:
            return "lowering 'ort' cannot express a latent: GroupQueryAttention caches keys"
        if spec.value_head_dim != spec.head_dim:
            return (
                f"lowering 'ort' cannot express value_dim={spec.value_dim} beside "
                f"head_dim={spec.head_dim}: GroupQueryAttention has one head size"
            )
        if spec.head_dim % HEAD_SIZES:
            return (
                f"lowering 'ort' cannot express head_dim={spec.head_dim}: GroupQueryAttention "
                f"takes multiples of {HEAD_SIZES}; use lowering 'standard' or 'portable'"
            )
        return None

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor, rope: RopeSpec) -> Tensor:
        heads, width = x.shape[2], x.shape[3]
        if rope.layout == "permuted":
            x = halves(x, rope)
        turned = torch.onnx.ops.symbolic(
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
        return self.split(turned, width)

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        past_key: Tensor | None,
        past_value: Tensor | None,
        lengths: Tensor | None,
        attention_mask: Tensor | None,
        spec: AttentionSpec,
        sinks: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Causality, its windows, softcap and sinks are the operator's own; padding, chunks and
        windows of a layer that sees later tokens make a bias. Tokens that may see nothing are
        zeroed afterwards."""
        batch, sequence = q.shape[:2]
        past = 0 if past_key is None else past_key.shape[2]
        total = past if lengths is not None else past + sequence
        bias = visible = None
        own = spec.causal or (spec.window is None and spec.window_after is None)
        if attention_mask is not None or spec.chunk is not None or not own:
            allowed = operators.allowed_slots(
                sequence, total, attention_mask, spec, q.device, lengths
            )
            # Half the lowest number: a score added to it must not be infinite.
            bias = torch.where(allowed, 0.0, torch.finfo(q.dtype).min / 2).to(q.dtype)
            if attention_mask is not None:
                visible = allowed.any(dim=-1)[:, 0, :, None, None]
        used, bound, new = _counts(batch, sequence, past, total, lengths, past_key is not None)
        before = (*(self.join(x) for x in (q, k, v)), past_key, past_value, used, bound)
        after = (None, None, None, bias, sinks, None, None, None, None, new)
        heads, present_key, present_value = torch.onnx.ops.symbolic_multi_out(
            f"{DOMAIN}::GroupQueryAttention",
            (*before, *after),
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
        if visible is not None:
            heads = torch.where(visible, heads, 0.0)
        return heads, present_key, present_value


def _window(spec: AttentionSpec) -> int:
    """The operator's own window, -1 for none; where a token sees later ones, the bias has it."""
    if not spec.causal or spec.window is None:
        return -1
    return min(spec.window, LARGEST_WINDOW)


def _counts(
    batch: int, sequence: int, past: int, total: int, lengths: Tensor | None, cached: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """seqlens_k, entries of each row after the call less one; total_sequence_length, a bound on
    them; and query_seqlens, new entries of each row, which only a call with a cache may have."""
    if lengths is None:
        used = torch.full((batch,), past + sequence - 1, dtype=torch.int32)
    else:
        used = (lengths + (sequence - 1)).to(torch.int32)
    bound = torch.full((), total, dtype=torch.int32)
    return used, bound, torch.full((batch,), sequence, dtype=torch.int32) if cached else None

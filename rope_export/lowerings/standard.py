"""The operators that ONNX has for this: RotaryEmbedding and Attention of opset 23, and for fixed
caches TensorScatter and Attention of opset 24."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from rope_export.attention import operators
from rope_export.lowerings import Lowering, halves
from rope_export.spec import AttentionSpec, RopeSpec

ONNX_FLOAT = 1
"""TensorProto.FLOAT, the precision of the softmax."""


class Standard(Lowering):
    """RotaryEmbedding-23, and Attention-23 with past and present, or TensorScatter-24 into a fixed
    cache and Attention-24 over it."""

    name = "standard"
    caches: ClassVar[Mapping[str, int]] = {"none": 23, "growing": 23, "fixed": 24}

    def refusal(self, spec: AttentionSpec, cache: str) -> str | None:
        if spec.sinks:
            return "lowering 'standard' cannot express sinks: Attention-23 has no such input"
        return None

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
        """Plain causality is the operator's own, which counts from the past inputs, or from the
        entries in use. Windows, chunks and padding make an explicit mask; where padding leaves a
        token nothing to see, it is given every slot and then zeroed: what the operator makes of an
        empty row differs between runtimes."""
        if lengths is not None and past_key is not None:
            k, v = self.keep(past_key, k, lengths), self.keep(past_value, v, lengths)
            past_key = past_value = None
        mask = visible = None
        total = k.shape[2] + (0 if past_key is None else past_key.shape[2])
        # Without past inputs or lengths the operator would count from the first key.
        whole = past_key is None and lengths is None and spec.latent is not None
        plain = spec.window is None and spec.window_after is None and spec.chunk is None
        if attention_mask is not None or not plain or (whole and spec.causal):
            mask = operators.allowed_slots(
                q.shape[2], total, attention_mask, spec, q.device, lengths
            )
        if attention_mask is not None:
            assert mask is not None
            visible = mask.any(dim=-1, keepdim=True)
            mask = mask | ~visible
        if lengths is not None and mask is None:
            heads = _over_used(q, k, v, lengths + q.shape[2], spec)
            return heads, k, v
        given = (q, k, v, mask, past_key, past_value)
        heads, present_key, present_value = _attention(given, spec, mask is None and spec.causal)
        if visible is not None:
            heads = torch.where(visible, heads, 0.0)
        return heads, present_key, present_value


def _over_used(q: Tensor, k: Tensor, v: Tensor, used: Tensor, spec: AttentionSpec) -> Tensor:
    """Causal Attention-24 over the first `used` entries of each row, int64 (B,), whose last belong
    to q; it counts causality from their end."""
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
    given: tuple[Tensor | None, ...], spec: AttentionSpec, is_causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention-23. torch's own form of it takes values to be as wide as keys; where they are not,
    the operator is written by name."""
    if spec.value_head_dim == spec.head_dim:
        heads, present_key, present_value, _ = torch.onnx.ops.attention(
            *given,  # type: ignore[arg-type]
            is_causal=is_causal,
            scale=spec.softmax_scale,
            softcap=spec.softcap or 0.0,
            softmax_precision=ONNX_FLOAT,
        )
        return heads, present_key, present_value
    q, k, v, _, past_key, past_value = given
    assert q is not None
    assert k is not None
    assert v is not None
    shapes = [(*q.shape[:3], v.shape[3])]
    if past_key is not None and past_value is not None:
        total = past_key.shape[2] + k.shape[2]
        shapes += [(*x.shape[:2], total, x.shape[3]) for x in (k, v)]
    outputs = torch.onnx.ops.symbolic_multi_out(
        "::Attention",
        given,
        _attributes(spec, is_causal),
        dtypes=[q.dtype] * len(shapes),
        shapes=shapes,
        version=23,
    )
    return (outputs[0], k, v) if past_key is None else tuple(outputs)  # type: ignore[return-value]

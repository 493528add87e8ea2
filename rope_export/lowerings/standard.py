"""The operators that ONNX has for this: RotaryEmbedding and Attention of opset 23."""

import torch
from torch import Tensor

from rope_export import attention
from rope_export.lowerings import Lowering
from rope_export.spec import RopeSpec

ONNX_FLOAT = 1
"""TensorProto.FLOAT, the precision of the softmax."""


class Standard(Lowering):
    """RotaryEmbedding-23 and Attention-23 with past and present."""

    name = "standard"
    opset = 23

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor, rope: RopeSpec) -> Tensor:
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
        attention_mask: Tensor | None,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Causality is the operator's own, which counts from the past inputs. With padding it is
        part of an explicit mask, and a token that may see nothing is given every slot and then
        zeroed: what the operator makes of an empty row differs between runtimes."""
        mask = visible = None
        if attention_mask is not None:
            total = q.shape[2] + (0 if past_key is None else past_key.shape[2])
            mask = attention.allowed_slots(q.shape[2], total, attention_mask, q.device)
            visible = mask.any(dim=-1, keepdim=True)
            mask = mask | ~visible
        heads, present_key, present_value, _ = torch.onnx.ops.attention(
            q,
            k,
            v,
            mask,
            past_key,
            past_value,
            is_causal=mask is None,
            scale=scale,
            softmax_precision=ONNX_FLOAT,
        )
        if visible is not None:
            heads = torch.where(visible, heads, 0.0)
        return heads, present_key, present_value

"""Primitive operators of opset 18: runs in everything that reads ONNX."""

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from rope_export.attention import operators
from rope_export.lowerings import Lowering
from rope_export.spec import AttentionSpec, RopeSpec


class Portable(Lowering):
    """MatMul, Softmax, Where and arithmetic, nothing newer than opset 18."""

    name = "portable"
    caches: ClassVar[Mapping[str, int]] = {"none": 18, "growing": 18}

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor, rope: RopeSpec) -> Tensor:
        return operators.rotate(x, cos, sin, rope)

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
        k, v = operators.append(past_key, k), operators.append(past_value, v)
        allowed = operators.allowed_slots(q.shape[2], k.shape[2], attention_mask, spec, q.device)
        return products(q, k, v, allowed, spec, sinks, attention_mask is not None), k, v


def products(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    allowed: Tensor,
    spec: AttentionSpec,
    sinks: Tensor | None,
    empty_rows: bool,
) -> Tensor:
    """As `expression.attend`, but the heads of a group share one product with their key and value,
    so that the cache is never repeated in memory, and the scale goes to q, the smaller side.

    empty_rows: whether there may be rows that see nothing.
    """
    kv_heads, group = k.shape[1], q.shape[1] // k.shape[1]
    q = (q * spec.softmax_scale).unflatten(1, (kv_heads, group)).flatten(2, 3)
    scores = torch.matmul(q, k.transpose(2, 3)).unflatten(2, (group, -1))
    if spec.softcap is not None:
        scores = torch.tanh(scores / spec.softcap) * spec.softcap
    scores = torch.where(allowed[:, :, None], scores, torch.finfo(scores.dtype).min)
    if sinks is not None:
        sink = sinks.view(1, kv_heads, group, 1, 1)
        scores = torch.cat((scores, sink.expand(scores.shape[0], -1, -1, scores.shape[3], -1)), -1)
    # An explicit cast: torch's exporter drops the one that softmax(dtype=...) asks for.
    weights = F.softmax(scores.float(), dim=-1).to(v.dtype)
    if sinks is not None:
        weights = weights[..., :-1]
    if empty_rows:
        weights = torch.where(allowed[:, :, None], weights, 0.0)
    heads = torch.matmul(weights.flatten(2, 3), v)
    return heads.unflatten(2, (group, -1)).flatten(1, 2)

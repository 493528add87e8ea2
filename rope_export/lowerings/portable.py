"""Primitive operators of opset 18: runs in everything that reads ONNX."""

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from rope_export.attention import operators
from rope_export.attention.operators import BY_SLOT
from rope_export.attention.request import AttentionRequest, Slots, Visibility, visibility_facts
from rope_export.lowerings.base import LAYOUTS, PLAIN_TORCH, Lowering
from rope_export.spec import AttentionSpec, RopeSpec


class Portable(Lowering):
    """MatMul, Softmax, Where and arithmetic, nothing newer than opset 18."""

    name = "portable"
    caches: ClassVar[Mapping[str, int]] = {"none": 18, "growing": 18}
    features: ClassVar[frozenset[str]] = (
        PLAIN_TORCH
        | LAYOUTS
        | {
            *("partial", "latent", "value width", "group", "scale", "softcap", "sinks"),
            *("causal", "bidirectional", "window", "window_after", "chunk"),
        }
    )

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor, rope: RopeSpec) -> Tensor:
        return operators.rotate(x, cos, sin, rope)

    def visibility(self, slots: Slots, spec: AttentionSpec) -> Visibility:
        return Visibility(
            facts=visibility_facts(spec),
            padded=slots.attention_mask is not None,
            allowed=operators.allowed_in(slots, spec),
        )

    def attend(self, request: AttentionRequest) -> tuple[Tensor, Tensor, Tensor]:
        k, v = self.extended(request)
        return products(request, k, v, self.tap), k, v


def products(
    request: AttentionRequest, k: Tensor, v: Tensor, tap: operators.Tap = operators.untapped
) -> Tensor:
    """Attention over all slots, k and v, in matrix products and a softmax: (B, H, S, V).

    The heads of a group share one product with their key and value, so that the cache is never
    repeated in memory, and the scale goes to q, the smaller side. tap: see `Operators.tap`.
    """
    q, spec, sinks = request.q, request.spec, request.sinks
    allowed = request.visibility.allowed
    assert allowed is not None
    kv_heads, group = k.shape[1], q.shape[1] // k.shape[1]
    q = (q * spec.softmax_scale).unflatten(1, (kv_heads, group)).flatten(2, 3)
    scores = torch.matmul(q, k.transpose(2, 3)).unflatten(2, (group, -1))
    scores = tap("products", scores, BY_SLOT)
    if spec.softcap is not None:
        scores = torch.tanh(scores / spec.softcap) * spec.softcap
    scores = tap("scores", scores, BY_SLOT)
    seen = tap("allowed", allowed[:, :, None], BY_SLOT)
    scores = torch.where(seen, scores, torch.finfo(scores.dtype).min)
    if sinks is not None:
        sink = sinks.view(1, kv_heads, group, 1, 1)
        scores = torch.cat((scores, sink.expand(scores.shape[0], -1, -1, scores.shape[3], -1)), -1)
    # An explicit cast: torch's exporter drops the one that softmax(dtype=...) asks for.
    weights = F.softmax(scores.float(), dim=-1).to(v.dtype)
    if sinks is not None:
        weights = weights[..., :-1]
    weights = tap("probabilities", weights, BY_SLOT)
    if request.visibility.padded:
        weights = torch.where(seen, weights, 0.0)
    heads = torch.matmul(weights.flatten(2, 3), v)
    return heads.unflatten(2, (group, -1)).flatten(1, 2)

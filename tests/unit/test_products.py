"""Attention in matrix products, of `portable` and of capped scores: what eager attention gives."""

import pytest
import torch

from rope_export import AttentionSpec
from rope_export.attention import operators
from rope_export.attention.request import AttentionRequest, NoCache, Visibility, visibility_facts
from rope_export.lowerings.portable import products

SPECS = {
    "plain": {},
    "softcap": {"softcap": 1.5},
    "scale": {"scale": 0.7},
    "window": {"window": 3},
    "chunk": {"chunk": 4},
    "sinks": {"sinks": True},
    "all": {"softcap": 2.0, "scale": 0.4, "window": 5, "sinks": True},
}


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("features", SPECS.values(), ids=SPECS)
def test_products_are_eager_attention(features: dict[str, object], padded: bool) -> None:
    spec = AttentionSpec(hidden_size=32, heads=4, kv_heads=2, head_dim=8, rope=None, **features)
    torch.manual_seed(0)
    q = 3 * torch.randn(2, 4, 5, 8)  # scores well beyond the softcap
    k, v = 3 * torch.randn(2, 2, 9, 8), torch.randn(2, 2, 9, 6)
    sinks = torch.randn(4) if spec.sinks else None
    mask = torch.ones(2, 9, dtype=torch.int64)
    mask[1, :6] = 0  # leaves its first tokens nothing to see
    allowed = operators.allowed_slots(5, 9, mask if padded else None, spec, q.device)
    visibility = Visibility(facts=visibility_facts(spec), padded=padded, allowed=allowed)
    request = AttentionRequest(
        q=q, k=k, v=v, cache=NoCache(), visibility=visibility, spec=spec, sinks=sinks
    )
    expected = operators.attend(q, k, v, allowed, spec, sinks)
    torch.testing.assert_close(products(request, k, v), expected)

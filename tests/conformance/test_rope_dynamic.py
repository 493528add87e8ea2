"""The dynamic variant, and the one that HunYuan calls dynamic, against transformers and against
numbers from a head of 4 features, where d / (d - 2) is 2.
"""

import pytest
import torch
from transformers import HunYuanDenseV1Config
from transformers.models.hunyuan_v1_dense.modeling_hunyuan_v1_dense import (
    HunYuanDenseV1RotaryEmbedding,
)

from rope_export import AttentionSpec, RotaryAttention
from rope_export.checkpoints.drawn import drawn_weights
from tests.support.rope_configs import RTOL, TRAINED, config, numbers, ours, theirs

THETAS = [1e4, 5e5, 1e6]


@pytest.mark.parametrize(("factor", "times", "slow"), [(2, 2, 300), (3, 2, 400), (2, 3, 500)])
def test_dynamic_by_hand(factor: int, times: int, slow: int) -> None:
    """In a head of 4 features d / (d - 2) is 2, so the slow pair's 1 / sqrt(theta) = 1 / 100 is
    divided by factor * times - (factor - 1)."""
    rope = ours(config("dynamic", 4, factor=float(factor)))
    assert numbers(rope, times * TRAINED) == pytest.approx([1.0, 1 / slow], rel=RTOL)


@pytest.mark.parametrize("factor", [1.0, 2.0, 8.0])
def test_dynamic_does_nothing_within_the_trained_length(factor: float) -> None:
    rope, plain = ours(config("dynamic", factor=factor)), ours(config("default"))
    for length in (1, 2, TRAINED - 1, TRAINED):
        assert torch.equal(rope.inv_freq(torch.tensor(length)), plain.inv_freq())
    beyond = rope.inv_freq(torch.tensor(2 * TRAINED))
    assert bool((beyond[1:] < plain.inv_freq()[1:] * 0.999).all())


def test_dynamic_has_no_memory() -> None:
    """Frequencies, and cos and sin of a layer, are the same whatever was asked for before."""
    given = config("dynamic", factor=4.0)
    lengths = (TRAINED // 2, 2 * TRAINED, TRAINED + 1, 8 * TRAINED, 2 * TRAINED, 1)
    rope = ours(given)
    for length in lengths:
        fresh = ours(given).inv_freq(torch.tensor(length))
        assert torch.equal(rope.inv_freq(torch.tensor(length)), fresh)
        torch.testing.assert_close(fresh, theirs(given, length)[0], rtol=RTOL, atol=0)

    spec = AttentionSpec.from_hf(given.to_dict())
    layer = RotaryAttention.from_weights(spec, drawn_weights(spec, 0))
    short = torch.arange(TRAINED + 100)[None]
    before = layer.cos_sin(short, torch.float32)
    layer.cos_sin(torch.tensor([[50 * TRAINED]]), torch.float32)
    after = layer.cos_sin(short, torch.float32)
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))


@pytest.mark.parametrize("head_dim", [4, 16, 128])
@pytest.mark.parametrize("theta", THETAS)
@pytest.mark.parametrize("alpha", [1.0, 2.5, 1_000.0])
def test_alpha(alpha: float, theta: float, head_dim: int) -> None:
    """HunYuan calls it dynamic; the length has no part in it."""
    given = HunYuanDenseV1Config(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=head_dim,
        rope_parameters={
            "rope_type": "dynamic",
            "rope_theta": theta,
            "alpha": alpha,
            "factor": 1.0,
        },
    )
    rope, module = ours(given), HunYuanDenseV1RotaryEmbedding(given)
    assert rope.rope_type == "alpha"
    for length in (None, torch.tensor(1), torch.tensor(10_000_000)):
        assert torch.equal(rope.inv_freq(length), module.inv_freq)
    assert rope.attention_factor == module.attention_scaling == 1.0
    if head_dim == 4:  # the exponent is 2, so the slow pair is divided by alpha
        assert numbers(rope) == pytest.approx([1.0, theta**-0.5 / alpha], rel=RTOL)

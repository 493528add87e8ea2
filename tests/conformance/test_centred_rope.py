"""The rotation by places in an image, against transformers' own of DINOv3."""

import torch
from transformers import DINOv3ViTConfig
from transformers.models.dinov3_vit.modeling_dinov3_vit import DINOv3ViTRopePositionEmbedding

from rope_export import AttentionSpec
from rope_export.attention.rotation import cos_sin_of
from rope_export.checkpoints.families.vision import _whole_pairs
from rope_export.rope.centred import CentredRope


def test_patches_rotate_as_in_dinov3() -> None:
    config = DINOv3ViTConfig(hidden_size=32, num_attention_heads=2, patch_size=4)
    theirs = DINOv3ViTRopePositionEmbedding(config).eval()(torch.zeros(1, 3, 12, 20))  # 3 by 5
    rope = CentredRope(rotary_dim=16, theta=config.rope_theta, pair_axes=(0,) * 4 + (1,) * 4)
    rows, columns = torch.meshgrid(torch.arange(3), torch.arange(5), indexing="ij")
    positions = torch.stack((rows.flatten(), columns.flatten()))[:, None]
    ours = cos_sin_of(rope, rope.table(), positions, torch.float32)
    for mine, wide in zip(ours, theirs, strict=True):
        # Both angles are products of float32 numbers up to 2 pi: they differ by a few roundings.
        torch.testing.assert_close(mine[0], wide[:, :8], rtol=0, atol=8 * 2**-24 * 2 * torch.pi)


def test_a_class_token_does_not_rotate() -> None:
    rope = CentredRope(rotary_dim=8, pair_axes=(0, 0, 1, 1))
    positions = torch.tensor([[[-1, 0, 1]], [[-1, 0, 1]]])
    cos, sin = cos_sin_of(rope, rope.table(), positions, torch.float32)
    assert (cos[0, 0] == 1).all()
    assert (sin[0, 0] == 0).all()
    assert (sin[0, 1] != 0).all()


def test_pairs_of_either_half_become_pairs_of_the_whole() -> None:
    """Gemma 4's tower rotates feature i of a half of the head with i + a quarter of the head."""
    spec = AttentionSpec(hidden_size=16, heads=2, kv_heads=2, head_dim=8, rope=None)
    features = torch.arange(16)
    first, second = _whole_pairs(features, spec).reshape(2, 2, 4).unbind(1)
    assert torch.equal(second, first + 2)
    assert torch.equal(torch.cat((first, second), -1).sort(-1).values, features.reshape(2, 8))

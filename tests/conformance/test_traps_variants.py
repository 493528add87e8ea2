"""Plausible and silent misreadings of RoPE variants, each against transformers.

Every test shows that our layer computes what transformers' own attention module computes, and that
the wrong reading does not: so it would fail if we had it. The reference is transformers 5.23 with
eager attention on the CPU in float64, random weights, batch 2.
"""

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from rope_export.rope.default import DefaultRope
from rope_export.rope.yarn import YarnRope
from tests.support.trained_layer import (
    HIDDEN,
    PLAIN,
    UNMODIFIED,
    frequencies,
    llama,
    llama_config,
    right,
    turning,
    up_to,
    wrong,
)

SPREAD = torch.tensor([[0, 1, 2, 5, 9, 17, 33, 60, 100, 250, 400, 511]] * 2)
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64}


def test_yarn_keeps_the_fast_pairs() -> None:
    """YaRN, arXiv:2309.00071, section 3.2. Wrong: the ramp the other way, so that fast pairs are
    interpolated and slow ones kept; and YaRN without its factor on cos and sin."""
    layer = llama(SPREAD, **YARN)
    right(layer)
    found = frequencies(layer)
    assert torch.equal(found[:1], PLAIN[:1])
    torch.testing.assert_close(found[-1:], PLAIN[-1:] / 8)
    wrong(turning(layer, PLAIN + PLAIN / 8 - found))
    wrong(layer.rotated_as(factor_given=1.0))
    wrong(turning(layer, PLAIN / 8))


@pytest.mark.parametrize("truncate", [True, False])
def test_yarn_truncates_unless_told_not_to(truncate: bool) -> None:
    """gpt-oss has truncate off. Wrong: the other way; left out, it is on."""
    layer = llama(SPREAD, **YARN, truncate=truncate)
    right(layer)
    wrong(layer.rotated_as(truncate=not truncate))
    left_out = llama(SPREAD, **YARN)
    right(left_out)
    assert isinstance(left_out.spec.rope, YarnRope)
    assert left_out.spec.rope.truncate


@pytest.mark.parametrize(("length", "off_by_one"), [(64, 63), (65, 65)])
def test_longrope_is_short_up_to_the_original_length(length: int, off_by_one: int) -> None:
    """Wrong: to take the long factors from the original length on, or from two tokens beyond;
    length is that of the call, one more than its largest position, for all of its tokens."""
    layer = llama(
        up_to(length),
        rope_type="longrope",
        factor=4.0,
        original_max_position_embeddings=64,
        short_factor=[1.0 + 0.1 * pair for pair in range(8)],
        long_factor=[2.0 + 0.5 * pair for pair in range(8)],
    )
    right(layer)
    wrong(layer.rotated_as(original_length=float(off_by_one)))
    wrong(turning(layer, frequencies(layer, 1 if length > 64 else 65)))
    wrong(layer.rotated_as(factor_given=1.0))


DYNAMIC = {"rope_type": "dynamic", "factor": 4.0}


@pytest.mark.parametrize("length", [12, 63, 64])
def test_dynamic_is_plain_within_the_trained_length(length: int) -> None:
    """Wrong: the base grown already, as for twice the length."""
    layer = llama(up_to(length), **DYNAMIC)
    right(layer)
    wrong(turning(layer, frequencies(layer, 128)))


@pytest.mark.parametrize("length", [80, 128, 256])
def test_dynamic_grows_beyond(length: int) -> None:
    """Wrong: the plain base, as from the number of tokens; the base of the factor alone."""
    layer = llama(up_to(length), **DYNAMIC)
    # The base is a power of float64 here, of float32 there: up to two roundings of inv_freq, which
    # the position multiplies, in q and in k.
    rounding = 2 * 2 * length * 2**-24
    assert layer.error() <= UNMODIFIED + rounding
    assert layer.float64_error() <= rounding
    by_tokens = frequencies(layer, 12)
    assert torch.equal(by_tokens, PLAIN)
    wrong(turning(layer, by_tokens))
    wrong(turning(layer, DefaultRope(rotary_dim=16, theta=1e4 * 4 ** (16 / 14)).inv_freq()))


def test_dynamic_forgets_a_longer_call() -> None:
    """Wrong: a base kept from a longer call, as a module of transformers that has seen one does.
    The reference for the same positions is a fresh module."""
    layer, used = llama(up_to(128), **DYNAMIC), LlamaRotaryEmbedding(llama_config(**DYNAMIC))
    module = layer.module()
    hidden = torch.randn(1, 1, HIDDEN, dtype=torch.float64)
    module(hidden, torch.tensor([[511]]))
    assert layer.error(module=module) <= UNMODIFIED + 2 * 2 * 128 * 2**-24
    used(hidden, torch.tensor([[511]]))
    used(hidden, up_to(128))
    wrong(turning(layer, used.inv_freq))


def test_llama3_has_three_bands() -> None:
    """Wrong: no stretch, all stretched, and either of two bands without the blend between."""
    layer = llama(
        SPREAD,
        rope_type="llama3",
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=8.0,
        original_max_position_embeddings=256,
    )
    right(layer)
    found = frequencies(layer)
    kept, stretched = torch.isclose(found, PLAIN), torch.isclose(found, PLAIN / 8)
    between = ~kept & ~stretched
    assert kept.any()
    assert stretched.any()
    assert between.any()
    wrong(turning(layer, PLAIN))
    wrong(turning(layer, PLAIN / 8))
    wrong(turning(layer, torch.where(between, PLAIN, found)))
    wrong(turning(layer, torch.where(between, PLAIN / 8, found)))
    wrong(turning(layer, torch.where(kept, PLAIN / 8, torch.where(stretched, PLAIN, found))))

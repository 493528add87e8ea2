"""Plausible and silent misreadings of positions on several axes, each against transformers.

Every test shows that our layer computes what transformers' own attention module computes, and that
the wrong reading does not: so it would fail if we had it. The reference is transformers 5.23 with
eager attention on the CPU in float64, random weights, batch 2.
"""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Qwen2VLTextConfig, Qwen3VLTextConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLAttention, Qwen2VLRotaryEmbedding
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    Qwen3VLTextAttention,
    Qwen3VLTextRotaryEmbedding,
)

from rope_export import AttentionSpec
from rope_export.checkpoints.families import every_family
from rope_export.rope.default import DefaultRope
from rope_export.rope.sections import blocks as axes_in_blocks
from rope_export.rope.sections import interleaved as axes_in_turns
from rope_export.spec import NormSpec
from tests.support.trained_layer import (
    HEAD_DIM,
    HEADS,
    HIDDEN,
    KV_HEADS,
    Trained,
    called,
    right,
    up_to,
    wrong,
)


def places() -> Tensor:
    """Positions of time, height and width that have nothing to do with each other: (3, B, S)."""
    stream = torch.Generator().manual_seed(5)
    return torch.randint(0, 40, (3, 2, 12), generator=stream)


SECTIONS = (2, 3, 3)
MROPE: dict[str, tuple[Any, Any, Any, Any, Any]] = {
    "qwen2_vl": (
        Qwen2VLTextConfig,
        Qwen2VLAttention,
        Qwen2VLRotaryEmbedding,
        axes_in_blocks(SECTIONS),
        axes_in_turns(SECTIONS),
    ),
    "qwen3_vl": (
        Qwen3VLTextConfig,
        Qwen3VLTextAttention,
        Qwen3VLTextRotaryEmbedding,
        axes_in_turns(SECTIONS),
        axes_in_blocks(SECTIONS),
    ),
}


def mrope(name: str, position_ids: Tensor) -> tuple[Trained, dict[str, Any]]:
    """A call of the family's text attention, its rotation written down by hand; its config."""
    config_class, attention, rotary, axes, _ = MROPE[name]
    config = config_class(
        hidden_size=HIDDEN,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        num_hidden_layers=1,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 1e4,
            "mrope_section": list(SECTIONS),
        },
        attn_implementation="eager",
    )
    norm = NormSpec(eps=config.rms_norm_eps) if name == "qwen3_vl" else None
    spec = AttentionSpec(
        hidden_size=HIDDEN,
        heads=HEADS,
        kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        rope=DefaultRope(rotary_dim=HEAD_DIM, pair_axes=axes),
        **dict.fromkeys(("q_bias", "k_bias", "v_bias"), norm is None),
        q_norm=norm,
        k_norm=norm,
    )
    module = attention(config, layer_idx=0)
    return called(module, rotary(config), position_ids, spec), config.to_dict()


@pytest.mark.parametrize("name", MROPE)
def test_pairs_turn_with_their_own_axis(name: str) -> None:
    """Qwen2-VL, arXiv:2409.12191, section 2.1: axes in blocks of pairs; in Qwen3-VL axis after
    axis. Wrong: the other's order; time alone; height and width exchanged."""
    layer, _ = mrope(name, places())
    axes, others = MROPE[name][3:]
    assert axes != others
    right(layer)
    wrong(layer.rotated_as(pair_axes=others))
    exchanged = tuple((0, 2, 1)[axis] for axis in axes)
    wrong(layer.rotated_as(pair_axes=exchanged))
    time_alone = layer.rotated_as(pair_axes=())
    step = layer.steps[0]
    inputs = {**step.inputs, "position_ids": step.inputs["position_ids"][0]}
    wrong(dataclasses.replace(time_alone, steps=(dataclasses.replace(step, inputs=inputs),)))


@pytest.mark.parametrize("name", MROPE)
def test_text_alone_turns_as_with_one_axis(name: str) -> None:
    """Where the axes are the same, as for text, the order of the axes cannot be seen."""
    layer, _ = mrope(name, up_to(30).expand(3, 2, 12).contiguous())
    right(layer)
    right(layer.rotated_as(pair_axes=MROPE[name][4]))


@pytest.mark.parametrize("name", MROPE)
def test_axes_are_read_from_the_config(name: str) -> None:
    if f"{name}_text" not in every_family():
        pytest.skip(f"{name}_text is not a family of rope_export")
    layer, config = mrope(name, places())
    read = dataclasses.replace(layer, spec=AttentionSpec.from_hf(config))
    right(read)
    assert read.spec.rope is not None
    assert read.spec.rope.pair_axes == MROPE[name][3]

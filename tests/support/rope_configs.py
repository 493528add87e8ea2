"""Configs of every RoPE variant, read by us and by transformers."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.phi.modeling_phi import PhiRotaryEmbedding

from rope_export import AttentionSpec
from rope_export.spec import RopeSpec

RTOL = 1e-6
"""A few roundings of float32 (2**-24 each): a power, two products and a sum."""
TRAINED = 4_096
"""max_position_embeddings of these configs."""


def config(
    rope_type: str,
    head_dim: int = 64,
    theta: float = 1e4,
    outer: Any = None,
    kind: type = LlamaConfig,
    **more: Any,
) -> Any:
    """A config of so wide heads; outer: keys beside the rope parameters; kind: its class."""
    facts = {"max_position_embeddings": TRAINED, **(outer or {})}
    return kind(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        head_dim=head_dim,
        rope_parameters={"rope_type": rope_type, "rope_theta": theta, **more},
        **facts,
    )


def ours(given: Any) -> RopeSpec:
    """Our reading of the config's contents."""
    rope = AttentionSpec.from_hf(given.to_dict()).rope
    assert rope is not None
    return rope


def theirs(given: Any, length: int) -> tuple[Tensor, float]:
    """transformers' frequencies and attention factor at that length."""
    rope_type = given.rope_parameters["rope_type"]
    if rope_type == "default":
        return PhiRotaryEmbedding.compute_default_rope_parameters(given)
    return ROPE_INIT_FUNCTIONS[rope_type](given, "cpu", seq_len=length)


def agrees(given: LlamaConfig, *lengths: int, exactly: bool = True) -> RopeSpec:
    """Frequencies (bit for bit if exactly) and factor are transformers' at those lengths."""
    rope = ours(given)
    for length in lengths:
        expected, factor = theirs(given, length)
        found = rope.inv_freq(torch.tensor(length))
        assert found.dtype is torch.float32
        assert found.shape == expected.shape
        if exactly:
            assert torch.equal(found, expected)
        else:
            torch.testing.assert_close(found, expected, rtol=RTOL, atol=0)
        assert rope.attention_factor == pytest.approx(factor, rel=RTOL)
    return rope


def parameters(rope_type: str, pairs: int, factor: float) -> dict[str, Any]:
    """Parameters that a variant needs, none of them trivial."""
    return {
        "default": {},
        "linear": {"factor": factor},
        "dynamic": {"factor": factor},
        "yarn": {"factor": factor, "original_max_position_embeddings": 1_024},
        "longrope": {
            "factor": factor,
            "original_max_position_embeddings": 1_024,
            "short_factor": [1 + 0.05 * pair for pair in range(pairs)],
            "long_factor": [1.3 + 0.7 * pair for pair in range(pairs)],
        },
        "llama3": {
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 1_024,
        },
        "proportional": {"factor": factor, "partial_rotary_factor": 0.5},
    }[rope_type]


STATIC = ["default", "linear", "yarn", "llama3", "proportional"]
EVERY = [*STATIC, "dynamic", "longrope"]


def numbers(rope: RopeSpec, length: int | None = None) -> list[float]:
    return rope.inv_freq(None if length is None else torch.tensor(length)).tolist()


def raw_config(rope: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A config.json as somebody may have written it, which transformers has not put in order."""
    facts = {
        "model_type": "llama",
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_hidden_layers": 1,
        "max_position_embeddings": TRAINED,
        "rope_parameters": {"rope_theta": 1e4, **rope},
    }
    return {k: v for k, v in {**facts, **more}.items() if v is not None}


def changed(rope_type: str, **changes: Any) -> dict[str, Any]:
    """Valid parameters but for the changes; ... takes a key away."""
    given = {"rope_type": rope_type, **parameters(rope_type, 8, 4.0), **changes}
    return {key: value for key, value in given.items() if value is not ...}

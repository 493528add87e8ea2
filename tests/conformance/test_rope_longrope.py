"""LongRoPE against transformers, and against numbers that were worked out with
mpmath at 40 digits from the authors' own formulas.
"""

import math
from typing import Any

import pytest
import torch
from transformers import Phi3Config

from rope_export import AttentionSpec
from tests.support.rope_configs import RTOL, config, ours, parameters, theirs


def test_longrope_switches_after_the_original_length() -> None:
    """At the original length it is still short; one more token, and it is long."""
    given = config("longrope", **parameters("longrope", 32, 4.0))
    rope, plain = ours(given), ours(config("default")).inv_freq()
    lists = given.rope_parameters
    short, long = (plain / torch.tensor(lists[name]) for name in ("short_factor", "long_factor"))
    for length, expected in ((1, short), (1_023, short), (1_024, short), (1_025, long)):
        found = rope.inv_freq(torch.tensor(length))
        torch.testing.assert_close(found, expected, rtol=RTOL, atol=0)
    assert bool(((short - long).abs() > 0.1 * short).all())


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        # 1 + ln 32 / ln 4096 = 1 + 5 / 12, and 1 + ln 8 / ln 4096 = 1 + 3 / 12.
        ({"factor": 32.0}, 1.19023807142381),
        ({"factor": 8.0}, 1.11803398874989),
        ({"factor": 1.0}, 1.0),
        ({"factor": 8.0, "attention_factor": 1.25}, 1.25),
        ({}, 1.19023807142381),
    ],
)
def test_longrope_attention_factor(more: dict[str, Any], expected: float) -> None:
    """sqrt(1 + ln(factor) / ln(original length)): LongRoPE's code for Phi-3."""
    given = parameters("longrope", 32, 1.0) | {"original_max_position_embeddings": 4_096}
    del given["factor"]
    made = config("longrope", outer={"max_position_embeddings": 131_072}, **given, **more)
    assert theirs(made, 1)[1] == pytest.approx(expected, rel=1e-12)
    assert ours(made).attention_factor == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("style", ["rope_scaling", "rope_parameters"])
def test_longrope_as_phi3_has_it(style: str) -> None:
    """Both context lengths stand beside the rope parameters, which have no factor."""
    lists = parameters("longrope", 48, 1.0)
    raw = {
        "hidden_size": 4 * 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "num_hidden_layers": 2,
        "sliding_window": None,
        "max_position_embeddings": 131_072,
        "original_max_position_embeddings": 4_096,
    }
    kind = {name: lists[name] for name in ("short_factor", "long_factor")}
    kind["type" if style == "rope_scaling" else "rope_type"] = "longrope"
    kind |= {} if style == "rope_scaling" else {"rope_theta": 10_000.0}
    old = {**raw, "rope_theta": 10_000.0} if style == "rope_scaling" else raw
    rope = AttentionSpec.from_hf({**old, "model_type": "phi3", style: dict(kind)}).rope
    assert rope is not None
    made = Phi3Config(**raw, rope_parameters={**kind, "rope_type": "longrope", "rope_theta": 1e4})
    assert rope.attention_factor == pytest.approx(math.sqrt(17 / 12), rel=1e-12)
    for length in (4_096, 4_097):
        expected, factor = theirs(made, length)
        assert torch.equal(rope.inv_freq(torch.tensor(length)), expected)
        assert rope.attention_factor == pytest.approx(factor, rel=1e-12)

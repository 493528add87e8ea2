"""Rope parameters that contradict each other, or are missing, are refused by name."""

import math
from typing import Any

import pytest

from rope_export import AttentionSpec
from rope_export.errors import SpecError
from tests.support.rope_configs import EVERY, changed, raw_config

NUMBER = ["linear", "dynamic", "yarn", "llama3"]
REFUSED: list[tuple[dict[str, Any], list[str]]] = [
    *[(changed(x, factor=0.5), [x, "factor=0.5"]) for x in [*NUMBER, "longrope"]],
    *[(changed(x, factor=math.inf), [x, "factor=inf"]) for x in NUMBER],
    *[(changed(x, factor=math.nan), [x, "factor=nan"]) for x in NUMBER],
    *[(changed(x, factor="2"), ["factor='2'"]) for x in EVERY if x != "default"],
    *[(changed(x, factor=True), ["factor=True"]) for x in EVERY if x != "default"],
    *[(changed(x, factor=...), ["factor=None"]) for x in ("linear", "dynamic", "llama3")],
    *[(changed(x, surprise=3), ["surprise=3", x]) for x in EVERY],
    *[(changed(x, beta_fast=32), ["beta_fast=32", x]) for x in EVERY if x != "yarn"],
    *[(changed(x, partial_rotary_factor=1.5), []) for x in EVERY],
    *[(changed(x, partial_rotary_factor=0.0), []) for x in EVERY],
    *[(changed(x, rope_theta=1.0), ["theta=1.0"]) for x in EVERY],
    *[(changed(x, rope_theta="1e4"), ["rope_theta='1e4'"]) for x in EVERY],
    *[
        (changed(x, original_max_position_embeddings=0), ["original_max_position_embeddings=0"])
        for x in ("yarn", "llama3", "longrope")
    ],
    (changed("proportional", factor=0.5), ["factor=0.5"]),
    (changed("proportional", factor=0.0), ["factor=0"]),
    (changed("yarn", beta_fast=1, beta_slow=32), ["beta_fast=1", "beta_slow=32"]),
    (changed("yarn", beta_slow=-1), ["beta_slow=-1"]),
    (changed("yarn", beta_fast="many"), ["beta_fast='many'"]),
    (changed("yarn", truncate="no"), ["truncate='no'"]),
    (changed("yarn", attention_factor=-1.0), ["attention_factor=-1.0"]),
    (changed("yarn", attention_factor=0), ["attention_factor=0"]),
    (changed("yarn", mscale="1"), ["mscale='1'"]),
    (changed("yarn", factor=..., original_max_position_embeddings=...), ["factor=None"]),
    (changed("llama3", low_freq_factor=4.0, high_freq_factor=1.0), ["low_freq_factor=4.0", "1.0"]),
    (changed("llama3", low_freq_factor=4.0), ["low_freq_factor=4.0", "high_freq_factor=4.0"]),
    (changed("llama3", low_freq_factor=0), ["low_freq_factor=0"]),
    (changed("llama3", low_freq_factor=...), ["low_freq_factor=None"]),
    (changed("llama3", high_freq_factor=...), ["high_freq_factor=None"]),
    (changed("longrope", short_factor=[1.0] * 3), ["short_factor has 3", "8 pairs"]),
    (changed("longrope", long_factor=[1.0] * 9), ["long_factor has 9", "8 pairs"]),
    (changed("longrope", short_factor=...), ["short_factor=None"]),
    (changed("longrope", long_factor=...), ["long_factor=None"]),
    (changed("longrope", short_factor=2.0), ["short_factor=2.0"]),
    (changed("longrope", short_factor=["1"] * 8), ["short_factor=['1'"]),
    (changed("longrope", long_factor=[1.0] * 7 + [0.0]), ["long_factor"]),
    (changed("longrope", attention_factor=-1.0), ["attention_factor=-1.0"]),
    # Its logarithm is 0, by which the attention factor divides.
    (
        changed("longrope", original_max_position_embeddings=1),
        ["original_max_position_embeddings=1"],
    ),
    ({"rope_type": "ntk"}, ["rope_type='ntk'", "yarn"]),
    ({"rope_type": 3}, ["rope_type=3"]),
    # Names of ours, which no Llama may have.
    ({"rope_type": "axial"}, ["rope_type='axial'"]),
    ({"rope_type": "alternating"}, ["rope_type='alternating'"]),
    ({"rope_type": "alpha", "alpha": 2.0}, ["rope_type='alpha'"]),
]


@pytest.mark.parametrize(("rope", "named"), REFUSED, ids=lambda x: repr(x)[:90])
def test_contradictions_are_refused(rope: dict[str, Any], named: list[str]) -> None:
    """One line that names what is wrong with its value."""
    with pytest.raises(SpecError) as refusal:
        AttentionSpec.from_hf(raw_config(rope))
    message = str(refusal.value)
    assert "\n" not in message
    for words in named:
        assert words in message, message


@pytest.mark.parametrize("rope_type", EVERY)
def test_the_valid_parameters_are_not_refused(rope_type: str) -> None:
    """So that a refusal above is of the change."""
    assert AttentionSpec.from_hf(raw_config(changed(rope_type))).rope is not None


def test_contexts_that_are_missing() -> None:
    """Variants that need max_position_embeddings say so."""
    with pytest.raises(SpecError, match="max_position_embeddings=0"):
        AttentionSpec.from_hf(raw_config(changed("dynamic"), max_position_embeddings=0))
    with pytest.raises(SpecError, match="max_position_embeddings='4k'"):
        AttentionSpec.from_hf(raw_config(changed("dynamic"), max_position_embeddings="4k"))


@pytest.mark.parametrize("alpha", [-1.0, "1000"])
def test_alpha_that_makes_no_base(alpha: Any) -> None:
    rope = {"rope_type": "dynamic", "alpha": alpha, "factor": 1.0}
    with pytest.raises(SpecError, match="alpha="):
        AttentionSpec.from_hf(raw_config(rope, model_type="hunyuan_v1_dense", head_dim=16))

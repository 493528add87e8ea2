"""Frequencies and attention factors of every variant, against transformers and against numbers.

The reference is transformers' `modeling_rope_utils.ROPE_INIT_FUNCTIONS`, called on the same config.
The literal numbers were worked out with mpmath at 40 digits from the papers' and the authors' own
formulas, or are plain from a head of 4 or 8 features, where every power of theta is a power of 10.
"""

from typing import Any

import pytest
import torch
from transformers import Gemma3TextConfig, LlamaConfig, PhiConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from rope_export import AttentionSpec
from rope_export.errors import SpecError
from rope_export.rope import every_variant
from tests.support.rope_configs import (
    EVERY,
    RTOL,
    STATIC,
    TRAINED,
    agrees,
    config,
    numbers,
    ours,
    parameters,
    theirs,
)

HEAD_DIMS = [4, 16, 80, 96, 128, 256]
STRETCHED = [(1e4, 1.0), (5e5, 2.0), (1e6, 3.0), (1e4, 40.0)]
"""Thetas with factors, each of them once at least."""


def test_every_variant_of_transformers_is_here() -> None:
    assert {"default", *ROPE_INIT_FUNCTIONS} == set(EVERY)
    assert set(EVERY) <= every_variant().keys()


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("rope_type", STATIC)
def test_variants_that_know_no_length(rope_type: str, head_dim: int) -> None:
    for theta, factor in STRETCHED:
        given = config(rope_type, head_dim, theta, **parameters(rope_type, head_dim // 2, factor))
        rope = agrees(given, 1, TRAINED, 9 * TRAINED)
        assert not rope.depends_on_length
        assert torch.equal(rope.inv_freq(), theirs(given, 1)[0])


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
def test_variants_that_follow_the_length(rope_type: str, head_dim: int) -> None:
    lengths = (1, 1_023, 1_024, 1_025, TRAINED, TRAINED + 1, 2 * TRAINED, 100_003)
    for theta, factor in STRETCHED:
        given = config(rope_type, head_dim, theta, **parameters(rope_type, head_dim // 2, factor))
        assert agrees(given, *lengths, exactly=rope_type == "longrope").depends_on_length


@pytest.mark.parametrize("part", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("rope_type", EVERY)
def test_part_of_a_head(rope_type: str, part: float) -> None:
    """Only proportional takes the powers over the whole head; the others over what turns, in the
    families whose code looks at it."""
    turning = int(64 * part)
    given = parameters(rope_type, turning // 2, 8.0) | {"partial_rotary_factor": part}
    exactly, wide = rope_type != "dynamic", rope_type == "proportional"
    rope = agrees(config(rope_type, kind=PhiConfig, **given), 1, 3 * TRAINED, exactly=exactly)
    assert rope.rotary_dim == (64 if wide else turning)


def test_families_that_turn_whole_heads_refuse_a_part() -> None:
    """Llama's code does not look at the key."""
    with pytest.raises(SpecError, match=r"partial_rotary_factor=0\.5.*'llama'"):
        ours(config("default", partial_rotary_factor=0.5))


@pytest.mark.parametrize(
    ("rope_type", "more", "expected"),
    [
        ("default", {}, [1.0, 0.1, 0.01, 0.001]),
        ("linear", {"factor": 4.0}, [0.25, 0.025, 0.0025, 0.00025]),
        ("proportional", {"partial_rotary_factor": 0.5}, [1.0, 0.1, 0.0, 0.0]),
        ("proportional", {"partial_rotary_factor": 0.5, "factor": 4.0}, [0.25, 0.025, 0.0, 0.0]),
    ],
)
def test_heads_of_8_features_by_hand(
    rope_type: str, more: dict[str, Any], expected: list[float]
) -> None:
    """At theta = 10000 the pairs turn by 1, 1/10, 1/100 and 1/1000 rad a position."""
    assert numbers(ours(config(rope_type, 8, **more))) == pytest.approx(expected, rel=RTOL)


@pytest.mark.parametrize("rope_type", ["yarn", "llama3", "longrope"])
def test_original_length_beside_the_rope_parameters(rope_type: str) -> None:
    """It counts, as in Phi-3's files, also before that one inside: `standardize_rope_params`."""
    given = parameters(rope_type, 32, 4.0)
    inside = {"original_max_position_embeddings": 2_048}
    raw = {
        "model_type": "llama",
        "hidden_size": 256,
        "num_attention_heads": 4,
        "num_hidden_layers": 1,
        "max_position_embeddings": 4 * 256,
        "original_max_position_embeddings": 256,
    }
    for rope in (given | inside, {k: v for k, v in given.items() if k not in inside}):
        facts = {**raw, "rope_parameters": {**rope, "rope_type": rope_type, "rope_theta": 1e4}}
        read = AttentionSpec.from_hf(facts).rope
        assert read is not None
        made = LlamaConfig(**{k: v for k, v in facts.items() if k != "model_type"})
        for length in (256, 257):
            expected, factor = theirs(made, length)
            assert made.rope_parameters["original_max_position_embeddings"] == 256
            assert torch.equal(read.inv_freq(torch.tensor(length)), expected)
            assert read.attention_factor == pytest.approx(factor, rel=RTOL)


def by_kind(rope: dict[str, Any], **outer: Any) -> Gemma3TextConfig:
    """A config whose sliding layer 0 is plain and whose full layer 1 has that rotation."""
    return Gemma3TextConfig(
        hidden_size=256,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=64,
        num_hidden_layers=2,
        layer_types=["sliding_attention", "full_attention"],
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            "full_attention": {"rope_theta": 1e6, **rope},
        },
        **{"max_position_embeddings": TRAINED, **outer},
    )


def agrees_by_kind(given: Gemma3TextConfig) -> None:
    rope_type = given.rope_parameters["full_attention"]["rope_type"]
    rope = AttentionSpec.from_hf(given.to_dict(), layer=1).rope
    assert rope is not None
    for length in (1, TRAINED, 2 * TRAINED):
        expected, factor = ROPE_INIT_FUNCTIONS[rope_type](
            given, "cpu", seq_len=length, layer_type="full_attention"
        )
        found = rope.inv_freq(torch.tensor(length))
        torch.testing.assert_close(found, expected, rtol=RTOL, atol=0)
        assert rope.attention_factor == pytest.approx(factor, rel=RTOL)


@pytest.mark.parametrize("rope_type", [x for x in EVERY if x != "default"])
def test_parameters_by_the_kind_of_layer(rope_type: str) -> None:
    agrees_by_kind(by_kind({"rope_type": rope_type, **parameters(rope_type, 32, 4.0)}))


def test_truncate_by_the_kind_of_layer_is_refused() -> None:
    """transformers looks for it outside of the layer kinds only: what the file says is not done."""
    yarn = {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 8.0,
        "original_max_position_embeddings": 1_024,
    }
    kinds = {"full_attention": {**yarn, "truncate": False}, "sliding_attention": yarn}
    given = Gemma3TextConfig(rope_parameters=kinds, layer_types=["full_attention"] * 26)
    with pytest.raises(SpecError, match="truncate=False"):
        ours(given)


def test_original_length_beside_parameters_by_kind_is_not_looked_at() -> None:
    """`standardize_rope_params` takes it over only where all layers share their parameters."""
    rope = {"rope_type": "longrope", **parameters("longrope", 32, 4.0)}
    agrees_by_kind(by_kind(rope, original_max_position_embeddings=512))

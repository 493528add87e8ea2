"""Frequencies and attention factors of every variant, against transformers and against numbers.

The reference is transformers' `modeling_rope_utils.ROPE_INIT_FUNCTIONS`, called on the same config.
The literal numbers were worked out with mpmath at 40 digits from the papers' and the authors' own
formulas, or are plain from a head of 4 or 8 features, where every power of theta is a power of 10.
"""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Gemma3TextConfig, HunYuanDenseV1Config, LlamaConfig, Phi3Config, PhiConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.hunyuan_v1_dense.modeling_hunyuan_v1_dense import (
    HunYuanDenseV1RotaryEmbedding,
)
from transformers.models.phi.modeling_phi import PhiRotaryEmbedding

from rope_export import AttentionSpec, RotaryAttention
from rope_export.checkpoints.drawn import drawn_weights
from rope_export.errors import SpecError
from rope_export.rope import every_variant
from rope_export.spec import RopeSpec

RTOL = 1e-6
"""A few roundings of float32 (2**-24 each): a power, two products and a sum."""
TRAINED = 4_096
"""max_position_embeddings of these configs."""
HEAD_DIMS = [4, 16, 80, 96, 128, 256]
THETAS = [1e4, 5e5, 1e6]
STRETCHED = [(1e4, 1.0), (5e5, 2.0), (1e6, 3.0), (1e4, 40.0)]
"""Thetas with factors, each of them once at least."""


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


def numbers(rope: RopeSpec, length: int | None = None) -> list[float]:
    return rope.inv_freq(None if length is None else torch.tensor(length)).tolist()


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


YARN = {
    # Llama 2 stretched 16 times: the ramp goes from pair 20 to pair 46.
    "llama2": (
        (128, 1e4, {"factor": 16.0}),
        {0: 1.0, 20: 0.056234132519, 21: 0.046940859998, 33: 0.00460043546785},
        {45: 0.000151771604732, 46: 8.33450895102e-5, 63: 7.21738740431e-6},
    ),
    # The same with the ramp's ends left where they are, at 20.944482 and 45.026881.
    "llama2, not truncated": (
        (128, 1e4, {"factor": 16.0, "truncate": False}),
        {0: 1.0, 20: 0.056234132519, 21: 0.0485915058627, 33: 0.00459560854183},
        {45: 9.78568746724e-5, 46: 8.33450895102e-5, 63: 7.21738740431e-6},
    ),
    # gpt-oss: from 8.0927791 to 17.398025.
    "gpt-oss": (
        (64, 150_000.0, {"factor": 32.0, "truncate": False}),
        {0: 1.0, 8: 0.0508132748155, 9: 0.0317056961847, 12: 0.00679495948973},
        {17: 0.000129318701245, 18: 3.83088123738e-5, 31: 3.02351142812e-7},
    ),
    "gpt-oss, truncated": (
        (64, 150_000.0, {"factor": 32.0}),
        {0: 1.0, 8: 0.0508132748155, 9: 0.0316207522753, 12: 0.0070157139105},
        {17: 0.000227947795795, 18: 3.83088123738e-5, 31: 3.02351142812e-7},
    ),
    # DeepSeek-V3: from 10 to 23; pair 16 is 0.01 * (7 + 6 / 40) / 13.
    "deepseek-v3": (
        (64, 1e4, {"factor": 40.0}),
        {0: 1.0, 10: 0.056234132519, 11: 0.0390069265671, 16: 0.0055},
        {22: 0.000177827941004, 23: 3.33380358041e-5, 31: 3.33380358041e-6},
    ),
}


@pytest.mark.parametrize("name", YARN)
def test_yarn_in_numbers(name: str) -> None:
    """YaRN, arXiv:2309.00071, section 3.2, with the ramp over pairs as in the authors' code,
    jquesnelle/yarn: kept below the ramp, divided by the factor above it, mixed along it."""
    (head_dim, theta, more), fast, slow = YARN[name]
    given = {"original_max_position_embeddings": 4_096, **more}
    found = numbers(ours(config("yarn", head_dim, theta, **given)))
    for pair, expected in (fast | slow).items():
        assert found[pair] == pytest.approx(expected, rel=RTOL), pair


@pytest.mark.parametrize(
    ("betas", "truncate"),
    [
        ((None, None), None),
        ((None, None), False),
        ((32.0, 1.0), True),
        ((16.0, 2.0), None),
        ((16.0, 2.0), False),
        ((64, 0.25), None),
        ((4.0, 4.0), None),
        ((4.0, 4.0), False),
    ],
)
@pytest.mark.parametrize(
    ("head_dim", "original"), [(16, 32), (16, 4_096), (80, 256), (128, 32), (128, 4_096)]
)
def test_yarn_ramps(head_dim: int, original: int, betas: tuple[Any, Any], truncate: Any) -> None:
    more = {"beta_fast": betas[0], "beta_slow": betas[1]}
    more |= {} if truncate is None else {"truncate": truncate}
    agrees(
        config(
            "yarn",
            head_dim,
            factor=8.0,
            original_max_position_embeddings=original,
            outer={"max_position_embeddings": 8 * original},
            **more,
        ),
        1,
    )


def test_yarn_ramp_lies_between_its_bounds() -> None:
    """Pairs of more turns than beta_fast are kept, those of fewer than beta_slow divided, and
    there is a mix of both between; other bounds move it."""
    given = {"factor": 8.0, "original_max_position_embeddings": 4_096, "truncate": False}
    plain = ours(config("default", 128)).inv_freq().double()
    turns = 4_096 * plain / (2 * math.pi)
    kept = {}
    for fast, slow in ((32, 1), (16, 2), (256, 8)):
        rope = ours(config("yarn", 128, beta_fast=fast, beta_slow=slow, **given))
        share = rope.inv_freq().double() / plain
        assert bool(((share - 1).abs() < RTOL)[turns > fast].all())
        assert bool(((share * 8 - 1).abs() < RTOL)[turns < slow].all())
        between = share[(turns < fast) & (turns > slow)]
        assert len(between) > 5
        assert bool(((between < 1) & (between > 1 / 8)).all())
        assert bool((between.diff() < 0).all())
        kept[fast] = int(((share - 1).abs() < RTOL).sum())
    assert kept[256] < kept[32] < kept[16]


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"factor": 4.0}, 1.13862943611199),
        ({"factor": 16.0}, 1.27725887222398),
        ({"factor": 40.0}, 1.36888794541139),
        ({"factor": 1.0}, 1.0),
        ({"factor": 40.0, "attention_factor": 0.75}, 0.75),
        ({"factor": 40.0, "attention_factor": 1.0}, 1.0),
        ({"factor": 40.0, "mscale": 1.0, "mscale_all_dim": 1.0}, 1.0),
        ({"factor": 40.0, "mscale": 0.707, "mscale_all_dim": 0.707}, 1.0),
        ({"factor": 40.0, "mscale": 0.8, "mscale_all_dim": 0.4}, 1.12858220761163),
        ({"factor": 40.0, "mscale": 0.8}, 1.36888794541139),
        ({"factor": 40.0, "mscale_all_dim": 0.8}, 1.36888794541139),
        ({"factor": 40.0, "mscale": 0.8, "mscale_all_dim": 0}, 1.36888794541139),
        ({"factor": 40.0, "mscale": 0.8, "mscale_all_dim": 0.4, "attention_factor": 0.5}, 0.5),
        ({"factor": None, "original_max_position_embeddings": 256}, 1.27725887222398),
    ],
)
def test_yarn_attention_factor(more: dict[str, Any], expected: float) -> None:
    """0.1 ln(factor) + 1: YaRN, section 3.4; the quotient of two: DeepSeek-V2."""
    given = config("yarn", **{"original_max_position_embeddings": 1_024, **more})
    assert theirs(given, 1)[1] == pytest.approx(expected, rel=1e-12)
    assert ours(given).attention_factor == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("trained", "factor"), [(8_192, 2.0), (16_384, 4.0), (40_960, 10.0)])
def test_yarn_factor_from_the_context_lengths(trained: int, factor: float) -> None:
    """A factor of null is the quotient of the two context lengths."""
    lengths = {"original_max_position_embeddings": 4_096}
    outer = {"max_position_embeddings": trained}
    implied = config("yarn", factor=None, outer=outer, **lengths)
    agrees(implied, 1)
    told = ours(config("yarn", factor=factor, outer=outer, **lengths))
    assert torch.equal(ours(implied).inv_freq(), told.inv_freq())
    assert ours(implied).attention_factor == told.attention_factor


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


LLAMA3 = {
    # Llama 3.1 8B: pairs 0 to 28 are kept, 35 to 63 divided by 8.
    "llama-3.1-8b": (
        (128, 5e5, 8.0, 8_192),
        {0: 1.0, 1: 0.814617233857, 27: 0.00394227603012, 28: 0.00321144599475},
        {29: 0.0021665707635, 31: 0.00085675141292, 33: 0.000312693750384, 34: 0.000178507812768},
        {35: 9.55621235396e-5, 36: 7.78465527393e-5, 63: 3.06892598891e-7},
    ),
    "llama-3.2-1b": (
        (64, 5e5, 32.0, 8_192),
        {0: 1.0, 13: 0.00483942134572, 14: 0.00321144599475},
        {15: 0.00129054792821, 16: 0.000429556796559, 17: 9.70828780263e-5},
        {18: 1.94616381848e-5, 31: 9.41830672543e-8},
    ),
    # Wavelengths 6.28, 62.8, 628 and 6283, against 250 and 1000.
    "by hand": (
        (8, 1e4, 8.0, 1_000),
        {0: 1.0, 1: 0.1},
        {2: 0.00297535250685},
        {3: 0.000125},
    ),
}


@pytest.mark.parametrize("name", LLAMA3)
def test_llama3_in_numbers(name: str) -> None:
    """meta-llama/llama-models, models/llama3_1: kept below the short wavelength, divided above
    the long one, mixed between."""
    (head_dim, theta, factor, original), fast, between, slow = LLAMA3[name]
    bounds = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope = ours(
        config(
            "llama3",
            head_dim,
            theta,
            factor=factor,
            original_max_position_embeddings=original,
            outer={"max_position_embeddings": 131_072},
            **bounds,
        )
    )
    found, plain = numbers(rope), [theta ** (-2 * i / head_dim) for i in range(head_dim // 2)]
    # At the slow end of the blend a rounding of the share counts up to `factor` times.
    for pair, expected in (fast | between | slow).items():
        rel = RTOL * (4 if pair in between else 1)
        assert found[pair] == pytest.approx(expected, rel=rel), pair
    assert all(found[pair] == pytest.approx(plain[pair], rel=RTOL) for pair in fast)
    assert all(found[pair] == pytest.approx(plain[pair] / factor, rel=RTOL) for pair in slow)
    assert all(plain[pair] / factor < found[pair] < plain[pair] for pair in between)


@pytest.mark.parametrize("bounds", [(1.0, 4.0), (1.0, 1.5), (0.5, 8.0)])
@pytest.mark.parametrize("original", [64, 8_192])
@pytest.mark.parametrize("head_dim", [16, 80, 128])
def test_llama3_bands(head_dim: int, original: int, bounds: tuple[float, float]) -> None:
    low, high = bounds
    agrees(
        config(
            "llama3",
            head_dim,
            5e5,
            factor=8.0,
            low_freq_factor=low,
            high_freq_factor=high,
            original_max_position_embeddings=original,
            outer={"max_position_embeddings": 131_072},
        ),
        1,
    )


def test_llama3_original_length_is_max_position_embeddings_if_not_given() -> None:
    given = parameters("llama3", 32, 8.0)
    del given["original_max_position_embeddings"]
    agrees(config("llama3", **given), 1)


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

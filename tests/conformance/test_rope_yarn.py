"""YaRN against transformers, and against numbers that were worked out with mpmath at 40 digits from
the paper's and the authors' own formulas.
"""

import math
from typing import Any

import pytest
import torch

from tests.support.rope_configs import RTOL, agrees, config, numbers, ours, theirs

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

"""Llama 3's stretch against transformers, and against numbers that were worked out with
mpmath at 40 digits from the authors' own formulas.
"""

import pytest

from tests.support.rope_configs import RTOL, agrees, config, numbers, ours, parameters

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

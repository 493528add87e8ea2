"""Frequencies, angles and rotation: each known misreading of RoPE has a test that fails on it."""

import dataclasses
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from rope_export import AttentionSpec, RotaryAttention
from rope_export.attention.operators import rotate
from rope_export.checkpoints.drawn import drawn_weights
from rope_export.discovery import modules_of
from rope_export.errors import SpecError
from rope_export.rope import variants
from rope_export.rope.default import DefaultRope
from rope_export.rope.linear import LinearRope

HALF = DefaultRope(rotary_dim=16)
PAIRED = DefaultRope(rotary_dim=16, layout="interleaved")


def layer(**changes: object) -> RotaryAttention:
    facts = {"hidden_size": 64, "heads": 4, "kv_heads": 2, "head_dim": 16, "rope": HALF}
    spec = AttentionSpec(**{**facts, **changes})  # type: ignore[arg-type]
    return RotaryAttention.from_weights(spec, drawn_weights(spec, 0))


def table(rope, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    angles = positions[..., None] * rope.inv_freq().double()
    return angles.cos(), angles.sin()


@pytest.mark.parametrize("head_dim", [2, 16, 64, 96, 128, 256])
@pytest.mark.parametrize("theta", [1e4, 1e5, 5e5, 8e6])
@pytest.mark.parametrize("factor", [None, 2.0, 3.0])
def test_inv_freq_is_transformers_bit_for_bit(head_dim, theta, factor) -> None:
    """d is the dimension of one head, the shape is (d / 2,), and linear divides the frequencies."""
    given = {"rope_type": "linear", "factor": factor} if factor else {"rope_type": "default"}
    config = LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        rope_parameters={**given, "rope_theta": theta},
    )
    rope = AttentionSpec.from_hf(config).rope
    assert type(rope) is (LinearRope if factor else DefaultRope)
    assert torch.equal(rope.inv_freq(), LlamaRotaryEmbedding(config).inv_freq)


def test_linear_divides_frequencies_not_positions() -> None:
    positions = torch.arange(10_000).float()[:, None]
    scaled = positions * LinearRope(rotary_dim=64, factor=3.0).inv_freq()
    squeezed = (positions / 3) * DefaultRope(rotary_dim=64).inv_freq()
    assert (scaled != squeezed).float().mean() > 0.1
    torch.testing.assert_close(scaled, squeezed, rtol=2**-21, atol=0)


def test_rotation_is_transformers() -> None:
    """q1 cos - q2 sin and q2 cos + q1 sin, for q and for k, with batch = heads."""
    q, k = torch.randn(2, 4, 4, 7, 16)
    cos, sin = (x.float() for x in table(HALF, torch.randint(0, 9_999, (4, 7))))
    full = (torch.cat((x, x), dim=-1) for x in (cos, sin))
    for found, expected in zip(
        (rotate(q, cos, sin, HALF), rotate(k, cos, sin, HALF)),
        apply_rotary_pos_emb(q, k, *full),
        strict=True,
    ):
        assert torch.equal(found, expected)


def test_rows_keep_their_own_positions_when_batch_equals_heads() -> None:
    x = torch.randn(4, 4, 4, 16)
    cos, sin = (c.float() for c in table(HALF, torch.randint(0, 999, (4, 4))))
    whole = rotate(x, cos, sin, HALF)
    for row in range(4):
        alone = rotate(x[row : row + 1], cos[row : row + 1], sin[row : row + 1], HALF)
        assert torch.equal(whole[row : row + 1], alone)


def test_layouts_are_equal_after_a_permutation_and_only_then() -> None:
    x = torch.randn(2, 3, 5, 16, dtype=torch.float64)
    cos, sin = table(HALF, torch.arange(5).expand(2, 5))
    order = torch.arange(16).view(2, 8).t().flatten()  # 0, 8, 1, 9, …
    half, paired = rotate(x, cos, sin, HALF), rotate(x[..., order], cos, sin, PAIRED)
    assert torch.equal(half[..., order], paired)
    assert (rotate(x, cos, sin, PAIRED) - half).norm() > 0.1 * half.norm()


@pytest.mark.parametrize("rope", [HALF, PAIRED, DefaultRope(rotary_dim=6)], ids=repr)
def test_position_0_turns_nothing_and_lengths_are_kept(rope) -> None:
    x = torch.randn(1, 2, 6, 16, dtype=torch.float64)
    cos, sin = table(rope, torch.tensor([[0, 0, 0, 5, 1_000, 131_071]]))
    turned = rotate(x, cos, sin, rope)
    assert torch.equal(turned[:, :, :3], x[:, :, :3])
    assert not torch.equal(turned[:, :, 3:], x[:, :, 3:])
    assert torch.equal(turned[..., rope.rotary_dim :], x[..., rope.rotary_dim :])
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1), rtol=1e-14, atol=0)


@given(st.integers(0, 4_000), st.integers(0, 4_000), st.integers(1, 131_072))
def test_scores_depend_on_the_distance_alone(m: int, n: int, shift: int) -> None:
    """RoFormer, arXiv:2104.09864, section 3.1."""
    stream = torch.Generator().manual_seed(m + n)
    q, k = torch.randn(2, 1, 1, 1, 16, dtype=torch.float64, generator=stream)

    def score(m: int, n: int) -> torch.Tensor:
        turned_q = rotate(q, *table(HALF, torch.tensor([[m]])), HALF)
        return (turned_q * rotate(k, *table(HALF, torch.tensor([[n]])), HALF)).sum()

    # float64 rounds an angle by up to position * 2**-53; two angles on either side.
    atol = 4 * (max(m, n) + shift) * 2**-52 * q.norm() * k.norm()
    torch.testing.assert_close(score(m + shift, n + shift), score(m, n), rtol=0, atol=float(atol))


def test_values_are_never_turned() -> None:
    hidden = torch.randn(1, 3, 64)
    _, key, value = layer()(hidden, torch.arange(3)[None])
    _, other_key, other_value = layer()(hidden, torch.arange(3)[None] + 77)
    assert torch.equal(value, other_value)
    assert not torch.allclose(key, other_key, atol=0.1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_angles_stay_in_float32(dtype) -> None:
    """A bfloat16 or float16 angle at these positions is off by whole turns."""
    positions = torch.tensor([[3, 2_049, 65_519, 100_003]])
    exact = layer().cos_sin(positions, torch.float32)
    cast = layer().to(dtype).half().to(dtype)
    assert cast.inv_freq.dtype == torch.float32
    for found, expected in zip(cast.cos_sin(positions, dtype), exact, strict=True):
        assert torch.equal(found, expected.to(dtype))


def test_autocast_leaves_the_angles_alone() -> None:
    positions, hidden = torch.tensor([[0, 100_003]]), torch.randn(1, 2, 64)
    exact = layer()(hidden, positions)[1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, key, _ = layer()(hidden, positions)
    assert key.dtype == torch.bfloat16
    assert (key.float() - exact).norm() < 4 * 2**-8 * exact.norm()


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: DefaultRope(rotary_dim=7), "rotary_dim=7"),
        (lambda: DefaultRope(rotary_dim=0), "rotary_dim=0"),
        (lambda: DefaultRope(rotary_dim=8, theta=1.0), "theta=1.0"),
        (lambda: LinearRope(rotary_dim=8, factor=0.5), "factor=0.5"),
        (lambda: layer(heads=4, kv_heads=3), "kv_heads=3"),
        (lambda: layer(rope=DefaultRope(rotary_dim=32)), "rotary_dim=32"),
    ],
)
def test_contradictions_are_refused_by_value(make, named) -> None:
    with pytest.raises(SpecError, match=named):
        make()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shifted(DefaultRope):
    """A made-up variant with a whole parameter and, if asked for, a wrong table."""

    rope_type = "shifted"
    hf_keys: ClassVar[dict[str, str]] = {"start": "start"}

    start: int
    wrong: bool = False

    def inv_freq(self, length: torch.Tensor | None = None) -> torch.Tensor:
        plain = super().inv_freq(length)
        return plain.double() if self.wrong else plain


def test_a_whole_parameter_is_read_as_one() -> None:
    assert Shifted.read({"start": 4.0}, None, head_dim=8, rotary_dim=8).start == 4
    with pytest.raises(SpecError, match=r"start=4\.5.*whole"):
        Shifted.read({"start": 4.5}, None, head_dim=8, rotary_dim=8)


def test_a_table_of_another_form_is_refused() -> None:
    rope = Shifted(rotary_dim=8, start=0, wrong=True)
    spec = AttentionSpec(hidden_size=8, heads=1, kv_heads=1, head_dim=8, rope=rope)
    with pytest.raises(SpecError, match=r"Shifted\.inv_freq gives float64\[4\].*float32\[4\]"):
        RotaryAttention(spec)


def test_two_variants_of_one_name_are_refused(monkeypatch) -> None:
    twin = SimpleNamespace(Twin=type("Twin", (DefaultRope,), {"__module__": "twin"}))
    monkeypatch.setattr(variants, "modules_of", lambda package: (*modules_of(package), twin))
    with pytest.raises(SpecError, match=r"both have rope_type 'default'"):
        variants.every_variant()

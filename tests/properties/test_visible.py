"""Every feature of a layer shows in some call of `verify`, or the verdict says that it does not."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from rope_export import AttentionSpec, RotaryAttention, export, open_session, verify
from rope_export.arrays import to_numpy
from rope_export.checkpoints.drawn import drawn_weights
from rope_export.errors import TensorError
from rope_export.parity.layer.counterfactuals import COUNTERFACTUALS, counterfactuals_of
from rope_export.parity.layer.inv_freq import frequencies
from rope_export.parity.layer.reference import ReferenceLayer
from rope_export.parity.report.lines import every_line
from rope_export.rope.default import DefaultRope
from rope_export.spec import LatentSpec, NormSpec, PositionScale
from rope_export.spec.features import SIZES
from tests.conftest import TINY

pytestmark = pytest.mark.usefixtures("short_prompts")

NORM = NormSpec(offset=1.0)
PLAIN: dict[str, Any] = {
    "hidden_size": 64,
    "heads": 4,
    "kv_heads": 2,
    "head_dim": 16,
    "rope": DefaultRope(rotary_dim=16),
}
LATENT = LatentSpec(
    q_rank=8, kv_rank=8, nope_dim=8, rope_dim=8, a_bias=True, q_factor=2.0, kv_factor=3.0
)
OTHER: dict[str, Any] = {
    "rope": None,
    "q_bias": True,
    "k_bias": True,
    "v_bias": True,
    "o_bias": True,
    "scale": 0.5,
    "softcap": 2.0,
    "sinks": True,
    "position_scale": PositionScale(beta=0.1, length=64),
    "causal": False,
    "window": 4,
    "window_after": 4,
    "chunk": 4,
    "q_norm": NORM,
    "k_norm": NORM,
    "v_norm": NORM,
    "o_norm": NORM,
    "norm_after_rope": True,
    "clip": 0.5,
    "value_scale": 2.0,
    "gate": "head",
    "gate_kind": "softplus",
    "gate_bias": True,
    "latent": LATENT,
}
"""Another value for every fact of a spec that is no tensor's shape or type."""
TOGETHER: dict[str, dict[str, Any]] = {
    "window_after": {"causal": False},
    "norm_after_rope": {"q_norm": NORM},
    "gate_kind": {"gate": "head"},
    "gate_bias": {"gate": "head"},
    "latent": {"kv_heads": 4, "rope": DefaultRope(rotary_dim=8)},
}
"""What a fact needs beside it."""


def layer_of(spec: AttentionSpec) -> ReferenceLayer:
    weights = {name: to_numpy(w.double()) for name, w in drawn_weights(spec, 0).items()}
    return ReferenceLayer(spec, weights, frequencies(spec))


def test_every_fact_of_a_spec_has_a_feature_with_a_counterfactual() -> None:
    """A fact that is added later, and is no tensor's shape, must show in the verdicts."""
    names = {field.name for field in dataclasses.fields(AttentionSpec)}
    assert names == {*SIZES, *OTHER}, "a fact without a feature; see rope_export/spec/features.py"
    for name, value in OTHER.items():
        beside = TOGETHER.get(name, {})
        spec = AttentionSpec(**{**PLAIN, **beside, name: value})
        before = PLAIN if name == "latent" else {**PLAIN, **beside}
        more = set(spec.features()) - set(AttentionSpec(**before).features())
        layer = layer_of(spec)
        assert any(list(counterfactuals_of(layer, feature)) for feature in more), name


OWN: dict[type, dict[str, Any]] = {
    NormSpec: {"kind": "layer", "eps": 1e-3, "over": "heads", "weight": False, "bias": True}
    | {"offset": 0.0},
    LatentSpec: {"q_rank": None, "norm_eps": 1e-3, "a_bias": False, "q_factor": 1.0}
    | {"kv_factor": 1.0},
    PositionScale: {"beta": 0.2, "length": 32, "offset": 1, "form": "power"},
}
SHAPES = {"kv_rank", "nope_dim", "rope_dim"}


@pytest.mark.parametrize("part", OWN, ids=lambda part: part.__name__)
def test_every_fact_of_a_part_is_known(part: type) -> None:
    assert {field.name for field in dataclasses.fields(part)} - SHAPES == set(OWN[part])


def test_every_kind_of_feature_has_a_function() -> None:
    kinds = set()
    for name, value in OTHER.items():
        spec = AttentionSpec(**{**PLAIN, **TOGETHER.get(name, {}), name: value})
        kinds |= {feature.kind for feature in spec.features()}
    rotation = {"partial", "axes", "clockwise", "attention factor", "length", "lengths"}
    assert set(COUNTERFACTUALS) == kinds | rotation | {"value width"}


def test_weights_that_make_a_feature_do_nothing_are_told(tmp_path: Path) -> None:
    """Biases of 0 and norm weights of 1, as in a freshly made checkpoint."""
    config = {**TINY, "model_type": "qwen2"}
    spec = AttentionSpec.from_hf(config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = {
        f"model.layers.0.self_attn.{name}": torch.zeros_like(value) if "q_proj.b" in name else value
        for name, value in drawn_weights(spec, 0).items()
    }
    save_file(weights, tmp_path / "model.safetensors")
    report = verify(export(tmp_path, out=tmp_path / "layer"))
    assert report.status == "passed"
    assert [hidden["feature"] for hidden in report.not_visible] == ["q bias"]
    assert "the same in all of" in report.not_visible[0]["reason"]
    assert any(line.startswith("not visible: q bias: ") for line in every_line(report))
    kept = json.loads((tmp_path / "layer" / "evidence.json").read_text())["parity"]
    assert kept["not_visible"] == report.to_json()["not_visible"] == report.not_visible


def test_a_window_that_takes_too_much_memory_is_told(tmp_path: Path) -> None:
    config = {**TINY, "model_type": "mistral", "sliding_window": 2**20}
    (tmp_path / "config.json").write_text(json.dumps(config))
    report = verify(export(tmp_path / "config.json", out=tmp_path / "layer"))
    assert report.status == "passed"
    reasons = {h["reason"] for h in report.not_visible if h["feature"] == f"window {2**20}"}
    assert len(reasons) == 3
    assert all("GiB; at most 2 are taken" in reason for reason in reasons)


def test_a_layer_states_its_first_position_and_sessions_refuse_what_lies_before(
    tmp_path: Path,
) -> None:
    """Llama 4's queries grow with the logarithm of their position."""
    config = {**TINY, "model_type": "llama4_text", "attn_temperature_tuning": True}
    config |= {"no_rope_layers": [0, 0], "floor_scale": 8, "attn_scale": 0.1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    artifact = export(tmp_path / "config.json", out=tmp_path / "layer", cache="fixed")
    first = artifact.manifest.first_position
    assert first == -AttentionSpec.from_hf(config).position_scale.offset
    with open_session(artifact) as session:
        stream = session.start(capacity=8)
        hidden = np.ones((1, 2, 64), np.float32)
        stream.step(hidden, np.array([[first, first + 5]]))
        with pytest.raises(TensorError, match=f"holds {first - 1}.*defined from {first} on"):
            stream.step(hidden, np.array([[first, first - 1]]))


def test_published_softcaps_and_windows_show(tmp_path: Path) -> None:
    """Unit normal inputs meet neither Gemma 2's cap of 50 nor a window of 4,096 slots."""
    config = {**TINY, "model_type": "gemma2", "attn_logit_softcapping": 50.0}
    config |= {"query_pre_attn_scalar": 256, "sliding_window": 4_096}
    (tmp_path / "config.json").write_text(json.dumps(config))
    report = verify(export(tmp_path / "config.json", out=tmp_path / "layer", dtype="float16"))
    assert report.status == "passed"
    assert report.not_visible == []
    cases = {row.case for row in report.rows}
    assert any("inputs x" in case for case in cases)
    assert any("loud slots" in case and "past 46" in case for case in cases)


def test_a_counterfactual_is_another_layer() -> None:
    """One that computes the same would make every layer look unproven."""
    for name, value in OTHER.items():
        layer = layer_of(AttentionSpec(**{**PLAIN, **TOGETHER.get(name, {}), name: value}))
        for feature in layer.spec.features():
            for other in counterfactuals_of(layer, feature):
                same = type(other.layer) is ReferenceLayer and other.layer.spec == layer.spec
                weights = same and other.layer.weights.keys() == layer.weights.keys()
                unchanged = weights and all(
                    np.array_equal(w, layer.weights[n]) for n, w in other.layer.weights.items()
                )
                rotation = layer.spec.rope is None or all(
                    np.array_equal(other.layer.inv_freq(length), layer.inv_freq(length))
                    for length in (1, 1_000)
                )
                assert not (unchanged and rotation and other.inputs is dict), (name, other.fault)


@pytest.mark.parametrize("size", [6, 7])
def test_windows_of_one_slot_more_and_less_are_looked_for(size: int) -> None:
    layer = layer_of(AttentionSpec(**PLAIN, window=size))
    (feature,) = (f for f in layer.spec.features() if f.kind == "window")
    windows = {c.fault: c.layer.spec.window for c in counterfactuals_of(layer, feature)}
    assert windows == {
        "no window": None,
        "a window of one slot more": size + 1,
        "a window of one slot less": size - 1,
    }


@pytest.mark.parametrize("form", ["log", "power"])
def test_the_reference_scales_queries_by_their_position(form: str) -> None:
    """As eager, which is compared with transformers: at positions on either side of `length`."""
    scale = PositionScale(beta=0.3, length=8, offset=1, form=form)
    spec = AttentionSpec(**PLAIN, position_scale=scale)
    eager = RotaryAttention.from_weights(spec, drawn_weights(spec, 0)).double()
    positions = torch.tensor([[0, 6, 7, 8, 30, 1_000]])
    hidden = torch.randn(1, 6, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = eager(hidden, positions)[0].numpy()
    found = layer_of(spec)({"hidden_states": hidden.numpy(), "position_ids": positions.numpy()})
    # eager has cos, sin, the factor and softmax in float32: 2**-24 each, on terms of order 1.
    np.testing.assert_allclose(found.output, wanted, rtol=0, atol=16 * 2**-24 * abs(wanted).max())

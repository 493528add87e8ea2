"""Weights that happen to be constant or equal: they stay in the file, each under its own name."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import Qwen3Config, Qwen3Model

from rope_export import AttentionSpec, RopeExportError, RotaryAttention, export, verify
from rope_export.artifacts.deployed import file_weights
from rope_export.exporter.translation import translate
from rope_export.interface import attention_interface
from rope_export.lowerings import lowered, lowerings, refusal
from tests.conftest import TINY
from tests.unit.test_features import GATED, LATENT, SUNK

pytestmark = pytest.mark.usefixtures("short_prompts")

LAYERS: dict[str, dict[str, Any]] = {
    "qwen3": {"model_type": "qwen3", "attention_bias": True},
    "gemma3": {"model_type": "gemma3_text", "sliding_window": 4, "query_pre_attn_scalar": 16},
    "gpt_oss": SUNK,
    "deepseek_v3": LATENT,
    "afmoe": GATED,
    "square": {"model_type": "llama", "num_key_value_heads": 4, "attention_bias": True},
}
COMBINATIONS = [
    (family, lowering, cache)
    for family, lowering, cache in itertools.product(
        LAYERS, lowerings(), ("none", "growing", "fixed")
    )
    if refusal(lowerings()[lowering], AttentionSpec.from_hf({**TINY, **LAYERS[family]}), cache)
    is None
]


@pytest.mark.parametrize(
    ("family", "lowering", "cache", "value"),
    [
        pytest.param(*one, float(at // 7 % 2), marks=pytest.mark.long if at % 7 else ())
        for at, one in enumerate(COMBINATIONS)
    ],
)
def test_every_weight_stays_whatever_it_holds(family, lowering, cache, value) -> None:
    """A 1 or a 0 changes no number that it is multiplied with or added to, and of two equal tensors
    one is enough: passes that know this would drop them."""
    spec = AttentionSpec.from_hf({**TINY, **LAYERS[family]})
    weights = {name: torch.full(shape, value) for name, shape in spec.weight_shapes.items()}
    interface = attention_interface(spec, cache=cache, padding=False)
    target = lowerings()[lowering]
    module = lowered(RotaryAttention.from_weights(spec, weights), target, cache)
    model = translate(module, interface, target.caches[cache])
    kept = {name: value.const_value for name, value in model.graph.initializers.items()}
    for name, shape in spec.weight_shapes.items():
        stored = kept[name].numpy()
        assert sorted(stored.shape) == sorted(shape)
        assert (stored == value).all()


def test_one_tensor_under_two_names_stays_twice() -> None:
    spec = AttentionSpec.from_hf({**TINY, "num_key_value_heads": 4, "model_type": "qwen3"})
    one = torch.randn(64, 64)
    norm = torch.ones(16)
    weights = dict.fromkeys(spec.weight_shapes, one) | {f"{n}_norm.weight": norm for n in "qk"}
    interface = attention_interface(spec, cache="growing", padding=False)
    module = lowered(
        RotaryAttention.from_weights(spec, weights), lowerings()["standard"], "growing"
    )
    model = translate(module, interface, 23)
    assert spec.weight_shapes.keys() <= model.graph.initializers.keys()


@pytest.mark.parametrize("lowering", ["ort", "standard"])
def test_a_freshly_made_model_is_proven(tmp_path: Path, lowering: str) -> None:
    """transformers makes q and k norms of ones."""
    config = Qwen3Config(
        hidden_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_hidden_layers=1,
        intermediate_size=32,
        vocab_size=32,
    )
    Qwen3Model(config).save_pretrained(tmp_path / "model")
    report = verify(export(tmp_path / "model", out=tmp_path / "out", lowering=lowering))
    assert (report.status, report.weights) == ("passed", "proven")


def test_quantized_projections_of_zeros_are_proven(tmp_path: Path) -> None:
    """Four equal packed tensors and four equal scales."""
    spec = AttentionSpec.from_hf(TINY)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(TINY))
    names = {
        f"model.layers.0.self_attn.{name}": torch.zeros(shape)
        for name, shape in spec.weight_shapes.items()
    }
    save_file(names, folder / "model.safetensors")
    artifact = export(folder, out=tmp_path / "out", lowering="ort", cache="fixed", weights="int4")
    assert all(torch.count_nonzero(tensor) == 0 for tensor in file_weights(artifact).values())
    assert verify(artifact).status == "passed"


def test_a_weight_that_the_graph_does_not_use_stops_the_export(monkeypatch) -> None:
    spec = AttentionSpec.from_hf({**TINY, "model_type": "qwen3"})
    layer = RotaryAttention(spec)
    monkeypatch.setattr(layer.q_norm, "forward", lambda x: x)
    interface = attention_interface(spec, cache="none", padding=False)
    module = lowered(layer, lowerings()["portable"], "none")
    with pytest.raises(RopeExportError, match=r"does not use the weight 'q_norm.weight'"):
        translate(module, interface, 18)

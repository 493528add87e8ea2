"""A source opened as a model: layers by number, and what lies outside of their attention."""

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from rope_export import AttentionSpec
from rope_export.checkpoints import checkpoint, files, open_model, opening
from rope_export.checkpoints.stacks import shared_names
from rope_export.errors import CheckpointError, SpecError
from rope_export.spec import NormSpec

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "vocab_size": 64}
SLIDING_AND_FULL = {
    "model_type": "gemma3_text",
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_hidden_layers": 3,
    "sliding_window": 5,
    "query_pre_attn_scalar": 8,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    },
}


def saved(folder: Path, model_type: str, **facts: Any) -> Path:
    """A small model of transformers with random weights, as its save_pretrained writes it."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**SIZES, "num_hidden_layers": 3, **facts})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def config_file(folder: Path, facts: dict[str, Any]) -> Path:
    (folder / "config.json").write_text(json.dumps(facts))
    return folder / "config.json"


def test_thirty_layers_read_config_and_header_once(smollm2: Path) -> None:
    with (
        patch.object(opening, "read_config", wraps=opening.read_config) as config,
        patch.object(checkpoint, "weight_files", wraps=files.weight_files) as header,
        patch.object(files, "tensor_names", wraps=files.tensor_names) as names,
    ):
        layers = list(open_model(smollm2).layers)
    assert (config.call_count, header.call_count, names.call_count) == (1, 1, 1)
    assert [layer.index for layer in layers] == list(range(30))
    with safe_open(smollm2 / "model.safetensors", framework="pt") as tensors:
        for layer in layers[::9]:
            assert layer.spec == AttentionSpec.from_hf(smollm2, layer=layer.index)
            alone = open_model(smollm2).layer(layer.index)
            assert (alone.facts, alone.names) == (layer.facts, layer.names)
            for name, weight in layer.weights().items():
                stored = f"model.layers.{layer.index}.self_attn.{name}"
                assert layer.names[name] == stored
                assert torch.equal(weight, tensors.get_tensor(stored).float())


def test_layers_of_a_hybrid_differ_as_their_kinds_do(tmp_path: Path) -> None:
    model = open_model(config_file(tmp_path, SLIDING_AND_FULL), seed=3)
    assert model.kinds == tuple(SLIDING_AND_FULL["layer_types"])
    sliding, full, again = model.layers
    assert (sliding.spec.window, full.spec.window) == (5, None)
    assert (sliding.spec.rope.rope_type, full.spec.rope.rope_type) == ("default", "linear")
    assert (sliding.spec, sliding.spec.q_norm) == (again.spec, NormSpec(eps=1e-6, offset=1.0))
    for layer in model.layers:
        alone = open_model(tmp_path / "config.json", seed=3).layer(layer.index)
        assert (layer.spec, layer.facts) == (alone.spec, alone.facts)
        pairs = zip(layer.weights().values(), alone.weights().values(), strict=True)
        assert all(torch.equal(ours, theirs) for ours, theirs in pairs)
    assert not torch.equal(sliding.weights()["q_proj.weight"], again.weights()["q_proj.weight"])


def test_a_key_that_one_layer_reads_is_not_read_for_the_next(tmp_path: Path) -> None:
    """Layers are judged one by one, whichever was opened before."""
    facts = {
        "model_type": "phimoe",
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 2,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "short_factor": [1.0] * 4,
            "long_factor": [2.0] * 4,
            "short_mscale": 1.1,
            "long_mscale": 1.1,
            "original_max_position_embeddings": 64,
        },
    }
    model = open_model(config_file(tmp_path, facts))
    first, second = model.layers
    assert first.notes == second.notes
    assert len(first.notes) == 1
    assert model.read.facts.read == set()


def test_a_number_beyond_the_layers_is_refused(tmp_path: Path) -> None:
    model = open_model(config_file(tmp_path, SLIDING_AND_FULL))
    assert len(model.layers) == 3
    assert model.layers[-1].index == 2
    assert [layer.index for layer in model.layers[1:]] == [1, 2]
    for index in (3, -1):
        with pytest.raises(SpecError, match=rf"layer={index}: the model has 3 layers, 0 to 2"):
            model.layer(index)
    with pytest.raises(IndexError):
        model.layers[3]


@pytest.mark.parametrize(
    ("model_type", "facts", "shared"),
    [
        ("llama", {}, {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}),
        (
            "gpt_neox",
            {},
            {
                "embed_out.weight",
                "gpt_neox.embed_in.weight",
                "gpt_neox.final_layer_norm.bias",
                "gpt_neox.final_layer_norm.weight",
            },
        ),
        (
            "lfm2",
            {"num_key_value_heads": 2, "layer_types": ["conv", "full_attention", "conv"]},
            {"model.embed_tokens.weight", "model.embedding_norm.weight"},
        ),
    ],
)
def test_every_tensor_is_shared_or_one_layers(
    tmp_path: Path, model_type: str, facts: dict[str, Any], shared: set[str]
) -> None:
    folder = saved(tmp_path, model_type, **facts)
    model, stored = open_model(folder), load_file(folder / "model.safetensors")
    assert set(model.shared) == shared
    parts = list(model.shared)
    for index, kind in enumerate(model.kinds):
        parts += model.beside(index)
        if kind.endswith("attention"):
            parts += set(model.layer(index).names.values())
    assert sorted(parts) == sorted(stored)
    for name in model.shared:
        assert torch.equal(model.tensor(name), stored[name])


def test_a_layer_that_does_not_attend_is_refused_by_its_kind(tmp_path: Path) -> None:
    facts = {"num_key_value_heads": 2, "layer_types": ["conv", "full_attention", "conv"]}
    model = open_model(saved(tmp_path, "lfm2", **facts))
    assert model.kinds == ("conv", "full_attention", "conv")
    assert model.layer(1).weights()
    with pytest.raises(SpecError, match=r"layer_types\[0\]='conv' is not implemented"):
        model.layer(0)


def test_a_towers_tensors_are_not_the_decoders(tmp_path: Path) -> None:
    """Of one file with two stacks, each part has what is its own."""
    names = [
        "lm_head.weight",
        "model.language_model.embed_tokens.weight",
        "model.visual.patch_embed.proj.weight",
        "model.visual.merger.mlp.0.weight",
        "mtp.fc.weight",
    ]
    text = shared_names(names, "model.language_model.layers.")
    assert text == tuple(names[:2])
    assert shared_names(names, "model.visual.blocks.") == tuple(sorted(names[2:4]))


def test_tensors_by_name(tmp_path: Path) -> None:
    drawn = open_model(config_file(tmp_path, SLIDING_AND_FULL))
    assert drawn.shared == drawn.beside(0) == ()
    with pytest.raises(SpecError, match="holds no tensors"):
        drawn.tensor("model.norm.weight")
    model = open_model(saved(tmp_path / "model", "llama"))
    with pytest.raises(SpecError, match=r"no tensor of that name"):
        model.tensor("model.nrom.weight")


def test_a_negative_seed_is_refused_by_the_parameters_name(tiny_config: Path) -> None:
    with pytest.raises(CheckpointError, match="`seed`=-1: it must be 0 or more"):
        open_model(tiny_config, seed=-1)

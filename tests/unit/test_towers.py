"""Models of several towers: which config and which tensors are meant."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from rope_export import AttentionSpec, export, verify
from rope_export.checkpoints import open_model
from rope_export.checkpoints.layout import taken
from rope_export.errors import CheckpointError, SpecError

TEXT = {
    "model_type": "qwen2_vl_text",
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
}
VISION = {"model_type": "qwen2_vl_vision", "embed_dim": 32, "num_heads": 2, "depth": 2}
CONFIG = {"model_type": "qwen2_vl", "text_config": TEXT, "vision_config": VISION}


def drawn(shapes: dict[str, tuple[int, ...]], prefix: str) -> dict[str, torch.Tensor]:
    return {f"{prefix}.{name}": torch.randn(shape) for name, shape in shapes.items()}


@pytest.fixture
def qwen(tmp_path: Path) -> Path:
    """Both towers of a tiny Qwen2-VL, named as published."""
    text = AttentionSpec.from_hf(TEXT).weight_shapes
    vision = {
        "qkv.weight": (96, 32),
        "qkv.bias": (96,),
        "proj.weight": (32, 32),
        "proj.bias": (32,),
    }
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    tensors = drawn(text, "model.language_model.layers.0.self_attn")
    tensors |= drawn(vision, "model.visual.blocks.0.attn")
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path


def test_the_text_decoder_is_meant_unless_a_tower_is_named(qwen: Path) -> None:
    text, vision = open_model(qwen).layer(), open_model(qwen, part="vision_config").layer()
    assert (text.spec.causal, text.spec.rope.axes) == (True, 3)
    assert (vision.spec.causal, vision.spec.rope.axes) == (False, 2)
    assert text.names["q_proj.weight"].startswith("model.language_model.")
    assert vision.names["q_proj.weight"] == "model.visual.blocks.0.attn.qkv.weight"


@pytest.mark.usefixtures("short_prompts")
def test_a_tower_is_exported_and_proven_against_its_checkpoint(qwen: Path, tmp_path: Path) -> None:
    artifact = export(qwen, out=tmp_path / "tower", part="vision_config", cache="none")
    shapes = {tensor.name: tensor.shape for tensor in artifact.manifest.inputs}
    assert shapes["position_ids"] == (2, "batch", "sequence")
    report = verify(artifact)
    assert (report.status, report.weights) == ("passed", "proven")


def test_a_part_that_is_not_there_is_refused(qwen: Path) -> None:
    with pytest.raises(SpecError, match=r"part='audio_config'.*text_config.*vision_config"):
        open_model(qwen, part="audio_config").layer()


def towers(folder: Path, prefixes: list[str], text: dict[str, Any]) -> Path:
    """Stacks of the common layout under several prefixes."""
    shapes = AttentionSpec.from_hf(text).weight_shapes
    (folder / "config.json").write_text(json.dumps({"model_type": "aria", "text_config": text}))
    tensors: dict[str, torch.Tensor] = {}
    for at, prefix in enumerate(prefixes):
        names = {f"{prefix}layers.0.self_attn.{n}": shape for n, shape in shapes.items()}
        tensors |= {n: torch.full(shape, float(at)) for n, shape in names.items()}
    save_file(tensors, folder / "model.safetensors")
    return folder


ARIA = {
    "model_type": "aria_text",
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 1,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
}


def test_stacks_of_one_layout_are_told_apart_by_their_tower(tmp_path: Path) -> None:
    stacks = ["model.vision_tower.vision_model.encoder.", "model.language_model."]
    weights = open_model(towers(tmp_path, stacks, ARIA)).layer().weights()
    assert all(bool((w == 1).all()) for w in weights.values())


def test_stacks_that_cannot_be_told_apart_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="2 stacks"):
        open_model(towers(tmp_path, ["one.", "two."], ARIA)).layer()


def test_fused_rows_that_do_not_divide_are_refused(qwen: Path) -> None:
    from rope_export.checkpoints.config import select, spec_of

    read = select(CONFIG, "vision_config")
    spec = spec_of(read, 0)
    tensors = {"qkv.weight": torch.ones(95, 32)}
    with pytest.raises((RuntimeError, KeyError)):
        taken(read.layout(0), spec, tensors)
    save_file(
        {
            "visual.blocks.0.attn.qkv.weight": torch.ones(95, 32),
            "visual.blocks.0.attn.qkv.bias": torch.ones(96),
            "visual.blocks.0.attn.proj.weight": torch.ones(32, 32),
            "visual.blocks.0.attn.proj.bias": torch.ones(32),
        },
        qwen / "model.safetensors",
    )
    with pytest.raises(CheckpointError, match=r"qkv\.weight"):
        open_model(qwen, part="vision_config").layer().weights()

"""Which of a checkpoint's stacks of layers is meant, and which names are not a model's own."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    T5GemmaConfig,
    T5GemmaForConditionalGeneration,
)

from rope_export.checkpoints import open_model
from rope_export.errors import CheckpointError, SpecError
from tests.conftest import TINY
from tests.unit.test_towers import ARIA, towers

SMALL = {**TINY, "vocab_size": 32, "intermediate_size": 32}
FILE = "model.safetensors"


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SMALL)).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def queries(folder: Path, **options: Any) -> torch.Tensor:
    return open_model(folder, **options).layer().weights()["q_proj.weight"]


def renamed(folder: Path, old: str, new: str, keep: bool = False) -> None:
    """Every tensor's prefix changed, or a second set of tensors added under the new one."""
    whole = load_file(folder / FILE)
    again = {name.replace(old, new, 1): 2 * t + 1 for name, t in whole.items() if old in name}
    save_file({**whole, **again} if keep else again, folder / FILE, {"format": "pt"})


@pytest.mark.parametrize("beside", ["mtp.", "model.mtp.", "draft_model.model.", "ema.model."])
def test_a_stack_beside_the_model_is_not_the_model(llama: Path, beside: str) -> None:
    """transformers loads the tensors of its own names; heads for drafting are unexpected ones."""
    renamed(llama, "model.", beside, keep=True)
    theirs = AutoModelForCausalLM.from_pretrained(llama).model.layers[0].self_attn.q_proj.weight
    assert torch.equal(queries(llama), theirs)


def test_a_stack_beside_a_model_whose_own_layers_are_gone_is_not_taken_for_it(llama: Path) -> None:
    renamed(llama, "model.", "mtp.")
    with pytest.raises(CheckpointError, match=r"^[^\n]*only those of \['mtp\.'\][^\n]*$"):
        open_model(llama).layer()


def test_a_tower_is_not_taken_for_the_text_decoder(tmp_path: Path) -> None:
    """A shard without the decoder's tensors, and a tower of the same layout."""
    folder = towers(tmp_path, ["model.vision_tower.encoder."], ARIA)
    with pytest.raises(CheckpointError, match=r"vision_tower.*another stack"):
        open_model(folder).layer()


WRAPPED = {
    "_orig_mod.model.": "torch.compile",
    "model._orig_mod.model.": "torch.compile",
    "module.model.": "DataParallel",
    "_fsdp_wrapped_module.model.": "FSDP",
}


@pytest.mark.parametrize("prefix", WRAPPED)
def test_names_that_a_wrapper_gave_are_refused_with_the_way_out(llama: Path, prefix: str) -> None:
    """transformers finds none of them and starts from random weights."""
    renamed(llama, "model.", prefix)
    with pytest.raises(CheckpointError, match=rf"^[^\n]*{WRAPPED[prefix]}[^\n]*Save the model"):
        open_model(llama).layer()


def test_names_of_a_peft_model_without_its_adapter_are_refused(llama: Path) -> None:
    renamed(llama, "model.", "base_model.model.model.")
    with pytest.raises(CheckpointError, match=r"^[^\n]*PEFT model[^\n]*`adapter`[^\n]*$"):
        open_model(llama).layer()


SIDE = {
    "vocab_size": 32,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


def test_a_model_of_an_encoder_and_a_decoder_names_its_parts(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = T5GemmaConfig(encoder=dict(SIDE), decoder=dict(SIDE), vocab_size=32)
    model = T5GemmaForConditionalGeneration(config)
    model.save_pretrained(tmp_path)
    with pytest.raises(SpecError, match=r"^[^\n]*`part`=decoder, `part`=encoder\.$"):
        open_model(tmp_path).layer()
    for part in ("encoder", "decoder"):
        theirs = getattr(model.model, part).layers[0].self_attn.q_proj.weight
        assert torch.equal(queries(tmp_path, part=part), theirs)


def test_stacks_that_cannot_be_told_apart_name_the_other_parts(tmp_path: Path) -> None:
    folder = towers(tmp_path, ["one.", "two."], ARIA)
    config = json.loads((folder / "config.json").read_text())
    config["talker_config"] = {**ARIA, "model_type": "llama"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"2 stacks.*`part`=talker_config"):
        open_model(folder).layer()

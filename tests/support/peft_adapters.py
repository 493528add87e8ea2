"""Tiny models and the adapters that PEFT makes for them."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from tests.conftest import TINY

peft = pytest.importorskip("peft", reason="needs the extra [test]")

SMALL = {**TINY, "vocab_size": 32, "intermediate_size": 32, "attention_bias": True}
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj"]


def model_in(folder: Path) -> Path:
    """A model none of whose weights is zero."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SMALL))
    with torch.no_grad():
        for tensor in model.parameters():  # biases are zero at first
            tensor.normal_(std=0.2)
    model.save_pretrained(folder)
    return folder


def adapted(base: Path, folder: Path, **options: Any) -> Path:
    """An adapter as PEFT saves it, none of whose tensors is zero."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = {"r": 4, "lora_alpha": 6, "target_modules": PROJECTIONS}
        kind = options.pop("kind", peft.LoraConfig)
        given = kind(**{**(config if kind is peft.LoraConfig else {}), **options})
        model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), given)
        torch.manual_seed(1)
        with torch.no_grad():
            for tensor in (p for p in model.parameters() if p.requires_grad):
                tensor.normal_(std=0.2)
        model.save_pretrained(folder)
    return folder


def merged(base: Path, adapter: Path, dtype: str = "float32", layer: int = 0) -> dict[str, Any]:
    """One layer's projections as PEFT merges them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype))
        whole = peft.PeftModel.from_pretrained(model, adapter).merge_and_unload()
    attention = whole.model.layers[layer].self_attn
    return {name: tensor.detach() for name, tensor in attention.state_dict().items()}

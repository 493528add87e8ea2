"""The thirteen variants as tiny checkpoints that every exporter reads, old transformers too."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.conformance.variants import COMMON, ORIGINAL, VARIANTS

POSITIONS = 4 * ORIGINAL
"""What every variant was made for, but dynamic, which goes on beyond what it was made for."""


SIZES: dict[str, dict[str, Any]] = {
    # Every published Phi has as many key heads as query heads, and onnxruntime's operator rotates
    # a multiple of 16 features.
    "partial": {"num_attention_heads": 2, "num_key_value_heads": 2},
    # onnxruntime-genai takes any matrix with as many rows as the vocabulary for the head.
    "longrope": {"vocab_size": 160},
}
"""Sizes of a variant that are others than the common ones."""


def save(variant: str, folder: Path, seed: int = 0, **sizes: Any) -> Path:
    """Writes config.json and weights as transformers does, and a tokenizer, without which some
    exporters stop."""
    model_type, more = VARIANTS[variant]
    longest = {} if variant == "dynamic" else {"max_position_embeddings": POSITIONS}
    sizes = SIZES.get(variant, {}) | sizes
    config = AutoConfig.for_model(model_type, **{**COMMON, **longest, **more, **sizes})
    config._attn_implementation = "eager"
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).eval()
    _draw(model)
    model.save_pretrained(folder)
    _tokenizer(folder, config.vocab_size)
    return folder


def for_exporters(checkpoint: Path, folder: Path) -> Path:
    """A copy whose config has the rotation as transformers before 5 reads it as well: one of the
    exporters is pinned to such a version, and others read these keys alone."""
    shutil.copytree(checkpoint, folder)
    path = folder / "config.json"
    facts = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(facts | _old(facts), indent=1), encoding="utf-8")
    return folder


def _draw(model: Any) -> None:
    """Weights large enough that heads attend to single tokens: with those that transformers draws
    every token attends to all others alike, and positions hardly count."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                weight.add_(torch.randn_like(weight) / 4)
            if weight.ndim == 2:
                weight.normal_(std=weight.shape[1] ** -0.5)
            if "q_proj" in name or "k_proj" in name or "qkv_proj" in name:
                weight.mul_(2.0)
            if "sinks" in name:
                weight.normal_()


def _old(facts: dict[str, Any]) -> dict[str, Any]:
    """The rotation as transformers before 5 reads it, beside how it is written now."""
    ropes = facts.get("rope_parameters") or {}
    local = ropes.get("sliding_attention")
    if local is not None:  # Gemma 3
        return {
            "rope_theta": ropes["full_attention"]["rope_theta"],
            "rope_local_base_freq": local["rope_theta"],
            "rope_scaling": _scaling(ropes["full_attention"]),
            "torch_dtype": "float32",
        }
    old = {"rope_theta": ropes.get("rope_theta", 10_000.0), "torch_dtype": "float32"}
    if "partial_rotary_factor" in ropes:
        old["partial_rotary_factor"] = ropes["partial_rotary_factor"]
    scaling = _scaling(ropes)
    return old if scaling is None else old | {"rope_scaling": scaling}


def _scaling(rope: dict[str, Any]) -> dict[str, Any] | None:
    if rope.get("rope_type", "default") == "default":
        return None
    if rope["rope_type"] == "longrope":  # Phi-3's own config allows these keys and no other
        return {"type": "longrope", **{k: rope[k] for k in ("short_factor", "long_factor")}}
    rest = {k: x for k, x in rope.items() if k not in ("rope_theta", "partial_rotary_factor")}
    return rest | {"type": rope["rope_type"]}


def _tokenizer(folder: Path, vocabulary: int) -> None:
    words = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"t{i}": i for i in range(3, vocabulary)}
    model = {"type": "WordLevel", "vocab": words, "unk_token": "<pad>"}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "Whitespace"},
        "model": model,
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    facts = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<pad>",
        "pad_token": "<pad>",
        "bos_token": "<s>",
        "eos_token": "</s>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(facts), encoding="utf-8")

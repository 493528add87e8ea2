"""Gemma 2 and 3 as llama.cpp keeps them: norms with one added, and numbers that no file holds.

Source: ggml-org/llama.cpp, convert_hf_to_gguf.py (Gemma2Model, Gemma3Model) and
src/llama-model.cpp, load_hparams.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rope_export.checkpoints.gguf.base import Architecture
from rope_export.checkpoints.gguf.llama import PLAIN
from rope_export.checkpoints.gguf.metadata import Metadata, common, rotation

WHOLE_MODEL = {"gemma2": 46, "gemma3": 62}
"""Layers of the 27B models, whose scale is that of hidden_size / heads features."""


def _less_one(tensor: Tensor, config: Mapping[str, Any]) -> Tensor:
    return tensor - 1


def _scaled(facts: Metadata, model_type: str) -> dict[str, Any]:
    config = common(facts, model_type)
    is_27b = WHOLE_MODEL[facts.architecture] == config["num_hidden_layers"]
    head_width = config["hidden_size"] // config["num_attention_heads"]
    return config | {
        "query_pre_attn_scalar": head_width if is_27b else config["head_dim"],
        "sliding_window": facts.need("attention.sliding_window"),
        "attention_bias": False,
    }


def _gemma2(facts: Metadata) -> dict[str, Any]:
    config = _scaled(facts, "gemma2")
    cap = facts.real("attn_logit_softcapping", 50.0)
    rope = rotation(facts, config["head_dim"])
    return config | {"attn_logit_softcapping": cap, "rope_parameters": rope}


def _gemma3(facts: Metadata) -> dict[str, Any]:
    config = _scaled(facts, "gemma3_text")
    rope = rotation(facts, config["head_dim"])
    local = {"rope_type": "default", "rope_theta": facts.real("rope.freq_base_swa", 10_000.0)}
    pattern = facts.get("attention.sliding_window_pattern", 6)
    layers = config["num_hidden_layers"]
    if isinstance(pattern, int):
        pattern = [bool((at + 1) % pattern) for at in range(layers)]
    kinds = ["sliding_attention" if slides else "full_attention" for slides in pattern]
    rope_by_kind = {"full_attention": rope, "sliding_attention": local}
    return config | {"layer_types": kinds, "rope_parameters": rope_by_kind}


NORMS = dict.fromkeys(
    ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm", "output_norm"), _less_one
)
"""Norms of the model around its attentions."""
GEMMA2 = Architecture(names=("gemma2",), config=_gemma2, modules=PLAIN, changes=NORMS)
GEMMA3 = Architecture(
    names=("gemma3",),
    config=_gemma3,
    modules={**PLAIN, "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"},
    changes={**NORMS, "attn_q_norm": _less_one, "attn_k_norm": _less_one},
)

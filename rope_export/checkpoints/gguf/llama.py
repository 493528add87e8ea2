"""Llama and Mistral, Qwen 2 and 3, Phi 3 as llama.cpp keeps them."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rope_export.checkpoints.gguf.base import Architecture
from rope_export.checkpoints.gguf.metadata import Metadata, common, rotation
from rope_export.errors import SpecError

PLAIN = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}


def halves(heads: str) -> Any:
    """Rows of q or k from pairs side by side to pairs half a head apart.

    llama.cpp rotates neighbouring features of Llama, transformers features i and i + head_dim / 2,
    so that its converter reorders the rows.
    Source: ggml-org/llama.cpp, convert_hf_to_gguf.py, LlamaModel.permute.
    """

    def change(tensor: Tensor, config: Mapping[str, Any]) -> Tensor:
        pairs = tensor.unflatten(0, (config[heads], -1, 2))
        return pairs.transpose(1, 2).flatten(0, 2).contiguous()

    return change


def _llama(facts: Metadata) -> dict[str, Any]:
    config = common(facts, "llama")
    rope = rotation(facts, config["head_dim"])
    if "partial_rotary_factor" in rope:
        raise SpecError(
            f"GGUF metadata llama.rope.dimension_count={facts.get('rope.dimension_count')}: "
            f"supported: whole heads of {config['head_dim']}."
        )
    bias = "blk.0.attn_q.bias" in facts.tensors
    return config | {"rope_parameters": rope, "attention_bias": bias}


def _qwen(model_type: str) -> Any:
    def read(facts: Metadata) -> dict[str, Any]:
        config = common(facts, model_type)
        rope = rotation(facts, config["head_dim"])
        bias = {} if model_type.startswith("qwen2") else {"attention_bias": False}
        return config | {"rope_parameters": rope, "use_sliding_window": False} | bias

    return read


def _phi3(facts: Metadata) -> dict[str, Any]:
    config = common(facts, "phi3")
    rope = rotation(facts, config["head_dim"])
    original = facts.get("rope.scaling.original_context_length")
    if "rope_factors_long" in facts.factors:
        rope |= {"rope_type": "longrope"}
        for key in ("short", "long"):
            factors = facts.factors[f"rope_factors_{key}"]
            rope[f"{key}_factor"] = [float(str(factor)) for factor in factors]
        rope["attention_factor"] = facts.real("rope.scaling.attn_factor")
    window = facts.get("attention.sliding_window") or None
    config |= {"original_max_position_embeddings": original or config["max_position_embeddings"]}
    return config | {"rope_parameters": rope, "sliding_window": window, "attention_bias": False}


LLAMA = Architecture(
    names=("llama",),
    config=_llama,
    modules=PLAIN,
    changes={"attn_q": halves("num_attention_heads"), "attn_k": halves("num_key_value_heads")},
)
QWEN2 = Architecture(names=("qwen2",), config=_qwen("qwen2"), modules=PLAIN, changes={})
QWEN3 = Architecture(
    names=("qwen3",),
    config=_qwen("qwen3"),
    modules={**PLAIN, "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"},
    changes={},
)
PHI3 = Architecture(
    names=("phi3",),
    config=_phi3,
    modules={"attn_qkv": "self_attn.qkv_proj", "attn_output": "self_attn.o_proj"},
    changes={},
)

"""A Llama of one layer with drawn weights: what every exporter is given."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

VOCABULARY, INTERMEDIATE = 128, 256
"""Small: what lies beside the attention layer is exported too, and is not measured."""

LAYER = "model.layers.0"


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Widths of the layer, and the most positions that the model is made for."""

    hidden: int = 2048
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 64
    positions: int = 8192

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of the checkpoint; matrices are (out, in)."""
        hidden, wide, narrow = (
            self.hidden,
            self.heads * self.head_dim,
            self.kv_heads * self.head_dim,
        )
        return {
            "model.embed_tokens.weight": (VOCABULARY, hidden),
            f"{LAYER}.input_layernorm.weight": (hidden,),
            f"{LAYER}.self_attn.q_proj.weight": (wide, hidden),
            f"{LAYER}.self_attn.k_proj.weight": (narrow, hidden),
            f"{LAYER}.self_attn.v_proj.weight": (narrow, hidden),
            f"{LAYER}.self_attn.o_proj.weight": (hidden, wide),
            f"{LAYER}.post_attention_layernorm.weight": (hidden,),
            f"{LAYER}.mlp.gate_proj.weight": (INTERMEDIATE, hidden),
            f"{LAYER}.mlp.up_proj.weight": (INTERMEDIATE, hidden),
            f"{LAYER}.mlp.down_proj.weight": (hidden, INTERMEDIATE),
            "model.norm.weight": (hidden,),
            "lm_head.weight": (VOCABULARY, hidden),
        }


def drawn(sizes: Sizes, seed: int = 0) -> dict[str, np.ndarray]:
    """Every tensor: normal of variance 1 / in for matrices, near 1 for norms."""
    generator = np.random.default_rng(seed)
    tensors = {}
    for name, shape in sizes.shapes().items():
        values = generator.standard_normal(shape, dtype=np.float32)
        norm = len(shape) == 1
        tensors[name] = 1 + values / 4 if norm else values / np.float32(math.sqrt(shape[1]))
    return tensors


def attention(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The four projections, by their names in a spec, such as q_proj.weight."""
    prefix = f"{LAYER}.self_attn."
    return {n.removeprefix(prefix): x for n, x in tensors.items() if n.startswith(prefix)}


def write(folder: Path, sizes: Sizes, seed: int = 0) -> dict[str, np.ndarray]:
    """Write config.json, model.safetensors and a tokenizer, without which some exporters stop.

    Returns: every tensor that was written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = drawn(sizes, seed)
    (folder / "config.json").write_text(json.dumps(config(sizes), indent=1), encoding="utf-8")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    names = {f"t{i}": i for i in range(3, VOCABULARY)}
    words = {"type": "WordLevel", "vocab": {"<unk>": 0, "<s>": 1, "</s>": 2} | names}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "Whitespace"},
        "model": words | {"unk_token": "<unk>"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>"}
    marks = {"bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(kind | marks), encoding="utf-8")
    return tensors


def config(sizes: Sizes) -> dict[str, object]:
    """A config.json that both the old and the new transformers read: rope_theta at the top."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": sizes.hidden,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": 1,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "head_dim": sizes.head_dim,
        "hidden_act": "silu",
        "vocab_size": VOCABULARY,
        "max_position_embeddings": sizes.positions,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "rope_scaling": None,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "dtype": "float32",
        "torch_dtype": "float32",
    }

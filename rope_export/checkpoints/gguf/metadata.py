"""A GGUF file's metadata: what is read of it, and what must not be left unread."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rope_export.errors import SpecError

ELSEWHERE = re.compile(
    r"vocab_size|context_length|feed_forward|expert|block_count|leading_dense|final_logit|pooling"
    r"|tensor_data_layout|rope\.scaling\.finetuned|nextn_predict|moe|embedding_scale|logit_scale"
)
"""Keys that do not describe a layer's attention."""


class Metadata:
    """Metadata keys of one architecture, without its name before them.

    factors: divisors of the frequencies by the name of the tensor that holds them. tensors: names
    of all.
    """

    def __init__(
        self,
        fields: Mapping[str, Any],
        factors: Mapping[str, np.ndarray],
        tensors: frozenset[str],
    ) -> None:
        self.fields, self.factors, self.tensors = fields, factors, tensors
        self.architecture = str(fields.get("general.architecture"))
        self.read: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        """A key's value, or `default` where the file has none."""
        full_key = f"{self.architecture}.{key}"
        self.read.add(full_key)
        return self.fields.get(full_key, default)

    def need(self, key: str) -> Any:
        """A key's value.

        Raises: SpecError if the file has none.
        """
        value = self.get(key)
        if value is None:
            raise SpecError(f"GGUF metadata {self.architecture}.{key} is missing.")
        return value

    def real(self, key: str, default: float | None = None) -> float:
        """A number, as its author wrote it: the shortest decimal for the 32 bits that are kept."""
        value = self.need(key) if default is None else self.get(key, default)
        return float(str(np.float32(value)))

    def refuse_unread(self, path: Path) -> None:
        """Refuses keys of the attention that no code read.

        Raises: SpecError naming the first.
        """
        prefix = f"{self.architecture}."
        for name in sorted(set(self.fields) - self.read):
            is_off = self.fields[name] in (None, False, 0, "", [])
            if name.startswith(prefix) and not ELSEWHERE.search(name) and not is_off:
                raise SpecError(
                    f"{path}: metadata {name}={self.fields[name]!r} is not supported: it may "
                    f"change the attention. Export the checkpoint that it was converted from."
                )


def common(facts: Metadata, model_type: str) -> dict[str, Any]:
    """Config keys that every architecture takes from the same metadata."""
    heads = facts.need("attention.head_count")
    hidden = facts.need("embedding_length")
    kv_heads = facts.get("attention.head_count_kv", heads)
    if isinstance(heads, list) or isinstance(kv_heads, list):
        raise SpecError(
            f"GGUF metadata {facts.architecture}.attention.head_count_kv={kv_heads!r}: heads that "
            f"differ from layer to layer are not supported."
        )
    head_dim = facts.get("attention.key_length", hidden // heads)
    if facts.get("attention.value_length", head_dim) != head_dim:
        raise SpecError(
            f"GGUF metadata {facts.architecture}.attention.value_length="
            f"{facts.get('attention.value_length')}: supported: as many as key_length={head_dim}."
        )
    if facts.get("attention.causal", True) is not True:
        raise SpecError(
            f"GGUF metadata {facts.architecture}.attention.causal=False: not supported."
        )
    return {
        "model_type": model_type,
        "hidden_size": hidden,
        "num_hidden_layers": facts.need("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "max_position_embeddings": facts.need("context_length"),
        "rms_norm_eps": facts.real("attention.layer_norm_rms_epsilon"),
    }


LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""Rope parameters of every Llama 3; a file keeps only the divisors that follow from them."""


def rotation(facts: Metadata, head_dim: int) -> dict[str, Any]:
    """rope_parameters, from the file's keys of scaling and from its divisors.

    Raises: SpecError for scaling that is not written as llama.cpp's converter writes it.
    """
    theta = facts.real("rope.freq_base", 10_000.0)
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    rotary_dim = facts.get("rope.dimension_count", head_dim)
    if rotary_dim != head_dim:
        rope["partial_rotary_factor"] = rotary_dim / head_dim
    kind = facts.get("rope.scaling.type", "none")
    if kind in ("linear", "yarn"):
        rope |= {"rope_type": kind, "factor": facts.real("rope.scaling.factor")}
    elif kind not in ("none", "longrope"):
        raise SpecError(f"GGUF metadata rope.scaling.type={kind!r}: supported: linear, yarn.")
    if kind == "none" and facts.get("rope.scale_linear"):  # older files
        rope |= {"rope_type": "linear", "factor": facts.real("rope.scale_linear")}
    if kind == "yarn":
        rope["original_max_position_embeddings"] = facts.need(
            "rope.scaling.original_context_length"
        )
        for key in ("yarn_beta_fast", "yarn_beta_slow"):
            if facts.get(f"rope.scaling.{key}") is not None:
                rope[key.removeprefix("yarn_")] = facts.real(f"rope.scaling.{key}")
    if kind == "linear":
        facts.get("rope.scaling.original_context_length")
    if "rope_freqs" in facts.factors:
        rope |= _llama3(facts.factors["rope_freqs"], theta, rotary_dim)
    return rope


def _llama3(divisors: np.ndarray, theta: float, rotary_dim: int) -> dict[str, Any]:
    """Rope parameters of the Llama 3 scaling that gives the divisors of a file.

    Source: ggml-org/llama.cpp, convert_hf_to_gguf.py, LlamaModel.generate_extra_tensors.
    """
    factor = float(divisors.max())
    plain = 1 / theta ** (np.arange(0, rotary_dim, 2, dtype=np.float32) / rotary_dim)
    waves = 2 * np.pi / plain
    length = LLAMA3["original_max_position_embeddings"]
    low, high = LLAMA3["low_freq_factor"], LLAMA3["high_freq_factor"]
    smooth = np.clip((length / waves - low) / (high - low), 0, 1)
    expected = 1 / ((1 - smooth) / factor + smooth)
    # The converter computes in float32, and its power may be off by a few roundings.
    if divisors.shape != expected.shape or not np.allclose(divisors, expected, rtol=1e-5, atol=0):
        raise SpecError(
            "GGUF tensor rope_freqs.weight: its divisors are not those of Llama 3's scaling; no "
            "other is supported."
        )
    return {"rope_type": "llama3", "factor": factor, **LLAMA3}

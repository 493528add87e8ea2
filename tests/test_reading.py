"""The second truth: transformers' own module, built by its own code from the same files."""

import json
from pathlib import Path

import pytest

from rope_export.checkpoints.config import select, spec_of
from rope_export.parity.reading import config_reads

pytest.importorskip("transformers")

MODELS = Path(__file__).parent.parent / "models"
NEVER = {"attention_dropout", "attn_pdrop", "resid_pdrop", "hidden_dropout"}
"""Dropout does nothing outside of training."""


def test_recorder_sees_what_llamas_attention_reads() -> None:
    reads = config_reads(MODELS / "llama-3.1-8b.json")
    assert {"hidden_size", "num_attention_heads", "num_key_value_heads", "attention_bias"} <= reads
    assert {"rope_parameters", "is_causal"} <= reads
    assert reads.isdisjoint({"mlp_bias", "intermediate_size", "vocab_size", "hidden_act"})


def test_recorder_follows_a_key_under_another_name() -> None:
    reads = config_reads(MODELS / "gpt-j-6b.json")
    assert {"n_embd", "n_head", "rotary_dim"} <= reads


@pytest.mark.long
@pytest.mark.parametrize("path", sorted(MODELS.glob("*.json")), ids=lambda p: p.stem)
def test_no_published_config_has_a_key_that_only_transformers_reads(path: Path) -> None:
    read = select(json.loads(path.read_text()))
    spec_of(read, 0)
    known = {"is_causal", "layer_types", "max_position_embeddings", "n_positions"}
    assert config_reads(path) - read.facts.read - NEVER - known <= {"num_key_value_heads"}

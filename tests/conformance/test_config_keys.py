"""Config keys are read as transformers reads them: the same file, both ways.

The reference is transformers' own model, built from the file in float64, eager attention.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel
from transformers import logging as transformers_logging

from rope_export import AttentionSpec, export
from rope_export.checkpoints import open_model
from rope_export.checkpoints.families import keys_read
from rope_export.errors import InputError, SpecError
from rope_export.reading import config_reads
from rope_export.rope.default import DefaultRope
from rope_export.rope.longrope import LongRope
from tests.support.layer_of import TOKENS, layer_of, tiny

UNMODIFIED = 2e-6
"""transformers has softmax and norms in float32, in float64 modules too: some 2**-24 each."""
FAR = 1e-2
"""What a wrong reading is off by at least, relative to the largest output."""
TWO_KINDS = ["sliding_attention", "full_attention"]
MODELS = Path(__file__).parents[2] / "models"


@pytest.fixture(autouse=True)
def quiet():
    transformers_logging.set_verbosity_error()


BOTH_SIDES = {
    "llama": tiny("llama"),
    "qwen3": tiny("qwen3"),
    "mistral, window": tiny("mistral", sliding_window=4),
    "gemma3, two kinds": tiny("gemma3_text", sliding_window=4, layer_types=TWO_KINDS),
    "gpt_oss, two kinds": tiny("gpt_oss", sliding_window=4, layer_types=TWO_KINDS),
    "phi3": tiny("phi3", head_dim=None),
}


@pytest.mark.parametrize("value", [False, None], ids=["false", "null"])
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("name", sorted(BOTH_SIDES))
def test_is_causal_off_lets_every_token_see_those_after_it(
    name: str, layer: int, value: Any
) -> None:
    """transformers' masking_utils looks at is_causal for any model whose masks it makes."""
    both = layer_of({**BOTH_SIDES[name], "is_causal": value}, layer)
    assert not both.spec.causal
    assert both.error() <= UNMODIFIED
    causal = AttentionSpec.from_hf(BOTH_SIDES[name], layer=layer)
    assert causal.causal
    assert both.error(causal) > FAR


def test_a_layer_that_sees_later_tokens_has_no_cache(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(tiny("llama", is_causal=False)), encoding="utf-8")
    with pytest.raises(InputError, match=r"cache 'growing' with causal=False"):
        export(file, out=tmp_path / "artifact")
    assert export(file, out=tmp_path / "artifact", cache="none").manifest.spec["causal"] is False


@pytest.mark.parametrize("model_type", ["llama", "granite"])
def test_a_window_that_transformers_does_not_read_is_refused(model_type: str) -> None:
    plain = tiny(model_type)
    windowed = {**plain, "layer_types": TWO_KINDS, "sliding_window": 4}
    with pytest.raises(SpecError, match=rf"layer_types=.* does not read it for .*'{model_type}'"):
        AttentionSpec.from_hf(windowed)
    layer = layer_of(plain)
    assert layer.error() <= UNMODIFIED
    assert layer.error(dataclasses.replace(layer.spec, window=4)) > FAR
    with pytest.raises(SpecError, match="sliding_window=4"):
        AttentionSpec.from_hf({**plain, "sliding_window": 4})


def test_kinds_that_say_what_the_code_does_are_accepted() -> None:
    assert AttentionSpec.from_hf(
        tiny("llama", layer_types=["full_attention"] * 2)
    ) == AttentionSpec.from_hf(tiny("llama"))


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3"])
def test_a_window_that_is_switched_off_cannot_slide(model_type: str) -> None:
    config = tiny(
        model_type, use_sliding_window=False, sliding_window=4, layer_types=TWO_KINDS, head_dim=16
    )
    with pytest.raises((TypeError, ValueError)):  # of transformers' cache or mask: there is none
        layer_of(config)
    with pytest.raises(SpecError, match=r"use_sliding_window=False: .*transformers refuses"):
        AttentionSpec.from_hf(config)
    config |= {"use_sliding_window": True}
    assert layer_of(config).spec.window == 4
    assert layer_of(config).error() <= UNMODIFIED


DERIVED = {
    "smollm3": tiny(
        "smollm3",
        use_sliding_window=True,
        sliding_window=4,
        no_rope_layers=[1, 0],
        head_dim=None,
    ),
    "dots1": tiny(
        "dots1", sliding_window=4, max_window_layers=1, n_shared_experts=1, first_k_dense_replace=2
    ),
    "qwen2": tiny(
        "qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=1, head_dim=None
    ),
    "qwen2_moe": tiny(
        "qwen2_moe",
        use_sliding_window=True,
        sliding_window=4,
        max_window_layers=2,
        head_dim=None,
        num_experts=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
    ),
    "cohere2": tiny("cohere2", sliding_window=4, sliding_window_pattern=2),
}
FIRST_SLIDES = ("cohere2", "qwen2_moe")


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("name", sorted(DERIVED))
def test_kinds_of_layers_are_derived_as_the_config_class_does(name: str, layer: int) -> None:
    both = layer_of(DERIVED[name], layer)
    assert both.spec.window == (4 if (layer == 0) is (name in FIRST_SLIDES) else None)
    assert both.error() <= UNMODIFIED


SHORT, LONG = [1.0 + 0.1 * pair for pair in range(8)], [2.0 + 0.5 * pair for pair in range(8)]
PHI_MOE = {
    "type": "longrope",
    "short_factor": SHORT,
    "long_factor": LONG,
    "short_mscale": 1.25,
    "long_mscale": 1.25,
    "original_max_position_embeddings": 32,
}


@pytest.mark.parametrize("first", [0, 40], ids=["within", "beyond"])
def test_phi_moe_rotates_by_its_own_factors(first: int) -> None:
    """short_mscale counts, not longrope's own factor; long_factor never does."""
    config = tiny("phimoe", head_dim=None, rope_scaling=PHI_MOE, rope_theta=1e4)
    layer = layer_of(config, first=first)
    assert layer.error() <= UNMODIFIED
    rope = layer.spec.rope
    assert isinstance(rope, LongRope)
    assert rope.attention_factor == 1.25
    others = {"factor_given": None}, {"long_factor": tuple(LONG)}
    for change in others[: 2 if first else 1]:
        wrong = dataclasses.replace(layer.spec, rope=dataclasses.replace(rope, **change))
        assert layer.error(wrong) > FAR
    with pytest.raises(SpecError, match=r"short_mscale=1\.25, long_mscale=1\.5"):
        AttentionSpec.from_hf({**config, "rope_scaling": {**PHI_MOE, "long_mscale": 1.5}})


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LEFT_OVER = {
    "attn_factor": (
        tiny("qwen3", rope_scaling={**YARN, "attn_factor": 0.878}),
        "attn_factor=0.878",
    ),
    "finetuned": (tiny("llama", rope_scaling={**YARN, "finetuned": True}), "finetuned=True"),
    "cohere2": (
        tiny(
            "cohere2",
            sliding_window=4,
            position_embedding_type="rope_gptj",
            rotary_pct=1.0,
            use_qk_norm=False,
        ),
        "rotary_pct=1.0",
    ),
    "dual chunks": (
        tiny("qwen2", head_dim=None, dual_chunk_attention_config={"chunk_size": 4}),
        "dual_chunk_attention_config",
    ),
    "nomic": (
        tiny(
            "nomic_bert",
            num_key_value_heads=None,
            n_head=4,
            n_embd=64,
            n_layer=2,
            qkv_proj_bias=False,
            rotary_emb_base=1000,
            rotary_emb_fraction=1.0,
            scale_attn_weights=True,
            use_flash_attn=True,
            causal=False,
        ),
        "rotary_emb_fraction=1.0",
    ),
}


@pytest.mark.parametrize("name", sorted(LEFT_OVER))
def test_what_transformers_does_not_read_is_told_once_and_left_out(name: str) -> None:
    config, told = LEFT_OVER[name]
    layer = layer_of(config)
    assert layer.error() <= UNMODIFIED
    notes = layer.read.notes
    assert any(told in note for note in notes)
    assert all("does not read it" in note and "\n" not in note for note in notes)


def test_notes_stand_in_the_manifest(tmp_path: Path) -> None:
    config = LEFT_OVER["attn_factor"][0]
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config), encoding="utf-8")
    source = open_model(file).layer()
    assert "attn_factor" in source.notes[0]
    assert source.facts["notes"] == list(source.notes)


CONTRADICTING = [
    tiny("nomic_bert", num_key_value_heads=None, n_head=8),
    tiny("nomic_bert", num_key_value_heads=None, rotary_emb_base=5000),
    tiny("nomic_bert", num_key_value_heads=None, rotary_emb_fraction=0.5),
    tiny("cohere2", sliding_window=4, rotary_pct=0.5),
    tiny("cohere2", sliding_window=4, position_embedding_type="alibi"),
    tiny("llama", alibi=True),
    tiny("llama", attention_sinks=True),
    tiny("llama", rope_scaling={**YARN, "ramp": 2.0}),
    tiny("gemma2", sliding_window=4, sliding_window_size=8),
]


@pytest.mark.parametrize("config", CONTRADICTING, ids=lambda c: f"{c['model_type']}-{list(c)[-1]}")
def test_an_unread_key_that_would_mean_something_is_refused_with_the_way_out(config: Any) -> None:
    with pytest.raises(SpecError, match=r"(?i)remove it") as error:
        AttentionSpec.from_hf(config)
    assert "\n" not in str(error.value)


def test_rotations_by_kind_belong_to_families_that_have_them(tmp_path: Path) -> None:
    """Llama's code does not look for them: transformers rotates by the base of 10000."""
    kinds = {"full_attention": {"rope_type": "default", "rope_theta": 5e5}}
    file = tmp_path / "config.json"
    file.write_text(json.dumps(tiny("llama", rope_parameters=kinds)), encoding="utf-8")
    theirs = AutoModel.from_config(AutoConfig.from_pretrained(file))
    assert torch.equal(theirs.rotary_emb.inv_freq, DefaultRope(rotary_dim=16).inv_freq())
    with pytest.raises(SpecError, match="one rotation for all layers"):
        AttentionSpec.from_hf(file)


PERTURBED = ("llama", "qwen3", "gemma3_text", "cohere2", "smollm3", "mistral", "olmo3", "qwen2_moe")


@pytest.mark.parametrize("model_type", PERTURBED)
def test_the_table_has_what_the_recorder_of_verify_sees(model_type: str) -> None:
    """Two recorders of different make, on the class's own defaults."""
    theirs = keys_read(model_type)
    assert theirs is not None
    config = AutoConfig.for_model(model_type).to_dict()
    known = {*theirs["attention"], *theirs["around"]}
    unknown = {x for x in config_reads(config) if "dropout" not in x and not x.startswith("_")}
    assert unknown <= known | {"model_type", "num_hidden_layers"}


@pytest.mark.parametrize("file", sorted(MODELS.glob("*.json")), ids=lambda file: file.stem)
def test_published_files_are_read(file: Path) -> None:
    """LFM2's third layer is its first that attends."""
    assert AttentionSpec.from_hf(file, layer=2).heads > 0


def test_tokens_pass_the_windows_here() -> None:
    assert TOKENS > 2 * 4

"""Every file in models/ means to transformers what its sources say."""

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from transformers import AutoConfig, AutoModel

MODELS = {path.stem: path for path in (Path(__file__).parents[1] / "models").glob("*.json")}


def read(name: str) -> dict:
    return json.loads(MODELS[name].read_text(encoding="utf-8"))


class Facts(NamedTuple):
    """What the sources named in a file say, written down apart from the file."""

    heads: int
    kv_heads: int
    head_dim: int
    theta: float
    rope: str = "default"
    turning: float = 1.0  # the part of a head that turns
    window: int | None = None
    sliding: int = 0  # layers with the window; those with none listed all have it
    biases: str = ""


FACTS = {
    "aya-23-8b": Facts(32, 8, 128, 1e4),
    "command-r": Facts(64, 64, 128, 8e6),
    "deepseek-v3": Facts(128, 128, 64, 1e4, "yarn"),
    "falcon-40b": Facts(128, 8, 64, 1e4),
    "falcon-7b": Facts(71, 1, 64, 1e4),
    "gemma-2-2b": Facts(8, 4, 256, 1e4, window=4096, sliding=13),
    "gemma-2-9b": Facts(16, 8, 256, 1e4, window=4096, sliding=21),
    "gemma-3-1b": Facts(4, 1, 256, 1e6, window=512, sliding=22),
    "gemma-3-4b": Facts(8, 4, 256, 1e6, "linear", window=1024, sliding=29),
    "glm-4-9b-chat": Facts(32, 2, 128, 1e4, turning=0.5, biases="qkv"),
    "gpt-j-6b": Facts(16, 16, 256, 1e4, turning=0.25),
    "gpt-neox-20b": Facts(64, 64, 96, 1e4, turning=0.25, biases="qkvo"),
    "gpt-oss-20b": Facts(64, 8, 64, 1.5e5, "yarn", window=128, sliding=12, biases="qkvo"),
    "granite-3.3-8b": Facts(32, 8, 128, 1e7),
    "llama-2-7b": Facts(32, 32, 128, 1e4),
    "llama-3.1-8b": Facts(32, 8, 128, 5e5, "llama3"),
    "llama-3.2-1b": Facts(32, 8, 64, 5e5, "llama3"),
    "mistral-7b-v0.1": Facts(32, 8, 128, 1e4, window=4096, sliding=32),
    "mistral-7b-v0.3": Facts(32, 8, 128, 1e6),
    "olmo-2-1124-7b": Facts(32, 32, 128, 5e5),
    "phi-3-mini-128k": Facts(32, 32, 96, 1e4, "longrope", window=131072, sliding=32),
    "phi-3-mini-4k": Facts(32, 32, 96, 1e4, window=2048, sliding=32),
    "phi-3.5-mini": Facts(32, 32, 96, 1e4, "longrope", window=262144, sliding=32),
    "phi-4": Facts(40, 10, 128, 2.5e5),
    "phi-4-mini": Facts(24, 8, 128, 1e4, "longrope", turning=0.75, window=262144, sliding=32),
    "qwen2-vl-7b": Facts(28, 4, 128, 1e6, biases="qkv"),
    "qwen2.5-7b": Facts(28, 4, 128, 1e6, biases="qkv"),
    "qwen3-8b": Facts(32, 8, 128, 1e6),
    "smollm3-3b": Facts(16, 4, 128, 5e6),
    "stablelm-3b-4e1t": Facts(32, 32, 80, 1e4, turning=0.25),
}

# Beyond theta: the numbers that shape the angles, per rotation.
SCALED = {
    "deepseek-v3": {
        "factor": 40,
        "original_max_position_embeddings": 4096,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 1,
        "mscale_all_dim": 1,
    },
    "gemma-3-4b": {"factor": 8},
    "gpt-oss-20b": {
        "factor": 32,
        "original_max_position_embeddings": 4096,
        "beta_fast": 32,
        "beta_slow": 1,
        "truncate": False,
    },
    "llama-3.1-8b": {
        "factor": 8,
        "original_max_position_embeddings": 8192,
        "low_freq_factor": 1,
        "high_freq_factor": 4,
    },
    "llama-3.2-1b": {
        "factor": 32,
        "original_max_position_embeddings": 8192,
        "low_freq_factor": 1,
        "high_freq_factor": 4,
    },
}

# A module of transformers and the projections it holds.
PROJECTIONS = {
    "q_proj": "q",
    "k_proj": "k",
    "v_proj": "v",
    "o_proj": "o",
    "out_proj": "o",
    "qkv_proj": "qkv",
    "query_key_value": "qkv",
    "dense": "o",
}


@pytest.fixture(params=sorted(MODELS), scope="module")
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def config(name):
    return AutoConfig.from_pretrained(MODELS[name])


@pytest.fixture(scope="module")
def model(config) -> torch.nn.Module:
    """The model as transformers builds it, shapes without storage."""
    with torch.device("meta"):
        return AutoModel.from_config(config)


def rope_of(config) -> dict:
    """The rotation of full attention, where sliding layers have another."""
    return config.rope_parameters.get("full_attention", config.rope_parameters)


def projections(model: torch.nn.Module) -> dict[str, torch.nn.Linear]:
    """The projections of the first layer's attention, by the letters of what they hold."""
    attention = re.compile(r"(layers|h)\.0\.(self_attn|self_attention|attention|attn)\.(\w+)")
    found = {}
    for path, module in model.named_modules():
        match = attention.fullmatch(path)
        if match and match[3] in PROJECTIONS:
            found[PROJECTIONS[match[3]]] = module
    return found


def test_there_are_facts_about_every_file():
    assert len(MODELS) >= 20
    assert set(MODELS) == set(FACTS)


def test_file_says_where_it_comes_from(name):
    written = read(name)
    assert list(written)[:3] == ["_name_or_path", "_source", "_certain"]
    assert re.fullmatch(r"[a-z0-9.-]+", name)
    assert name in re.sub(r"[^a-z0-9.]+", "-", written["_name_or_path"].lower())
    assert len(written["_source"]) > 20
    assert isinstance(written["_certain"], bool)
    assert written.get("_note", "a note") != ""


def test_transformers_knows_every_key(name, config):
    """It takes a key it does not know without a word, and then does nothing with it."""
    written = read(name)
    known = {field.name for field in dataclasses.fields(config)} | {"model_type"}
    assert {key for key in written if key[0] != "_"} <= known
    assert written["model_type"] == config.model_type


def test_transformers_changes_no_value(name, config):
    written = read(name)
    for key in [key for key in written if key[0] != "_"]:
        seen = getattr(config, key)
        if key == "rope_parameters":  # transformers may add defaults of its own
            seen = {part: seen[part] for part in written[key]}
        assert seen == written[key], key


def test_heads(name, config, model):
    facts = FACTS[name]
    assert config.num_attention_heads == facts.heads
    if hasattr(config, "num_key_value_heads"):
        assert config.num_key_value_heads == facts.kv_heads
    assert facts.head_dim == getattr(config, "head_dim", config.hidden_size // facts.heads)
    if name == "deepseek-v3":
        return  # test_latent_attention
    widths = {part: linear.out_features for part, linear in projections(model).items()}
    assert widths.pop("o") == config.hidden_size
    # Counted on transformers' weights: not every family has a key for its key and value heads.
    assert sum(widths.values()) == (facts.heads + 2 * facts.kv_heads) * facts.head_dim


def test_latent_attention():
    config = AutoConfig.from_pretrained(MODELS["deepseek-v3"])
    # DeepSeek-V3, arXiv:2412.19437, section 4.2: d_c, d_c', d_h, d_h^R.
    assert (config.kv_lora_rank, config.q_lora_rank) == (512, 1536)
    assert (config.qk_nope_head_dim, config.v_head_dim, config.qk_rope_head_dim) == (128, 128, 64)


def test_biases(name, model):
    biased = {part for part, linear in projections(model).items() if linear.bias is not None}
    assert set("".join(biased)) == set(FACTS[name].biases)


# model_type gptj has no rope_parameters: test_gptj_rotation.
@pytest.mark.parametrize("name", sorted(MODELS.keys() - {"gpt-j-6b"}), indirect=True)
def test_rotation(name, config, model):
    facts = FACTS[name]
    rope = rope_of(config)
    assert (rope["rope_type"], rope["rope_theta"]) == (facts.rope, facts.theta)
    assert rope.get("partial_rotary_factor", 1.0) == facts.turning
    pairs = {len(table) for path, table in model.named_buffers() if path.endswith("inv_freq")}
    assert pairs == {facts.turning * facts.head_dim / 2}


def test_gptj_rotation():
    from transformers.models.gptj.modeling_gptj import create_sinusoidal_positions

    config, facts = AutoConfig.from_pretrained(MODELS["gpt-j-6b"]), FACTS["gpt-j-6b"]
    assert config.rotary_dim == facts.turning * facts.head_dim
    sine = float(create_sinusoidal_positions(2, config.rotary_dim)[1, 1])
    # The second pair turns by theta ** (-2 / rotary_dim) per position; float32 keeps 24 bits.
    theta = math.asin(sine) ** (-config.rotary_dim / 2)
    assert theta == pytest.approx(facts.theta, rel=config.rotary_dim * 2**-24)


@pytest.mark.parametrize("scaled", sorted(SCALED))
def test_scaled_rotation(scaled):
    rope = rope_of(AutoConfig.from_pretrained(MODELS[scaled]))
    del rope["rope_type"], rope["rope_theta"]
    assert rope == SCALED[scaled]


@pytest.mark.parametrize(
    ("scaled", "short", "long"),
    [
        ("phi-3-mini-128k", (1.05, 3.05), (1.03, 64.81)),
        ("phi-3.5-mini", (1.0, 2.84), (1.08, 64.84)),
        ("phi-4-mini", (1.0, 1.0), (1.0, 47.77)),
    ],
)
def test_longrope_factors(scaled, short, long):
    config = AutoConfig.from_pretrained(MODELS[scaled])
    assert config.max_position_embeddings == 131072
    assert config.rope_parameters["original_max_position_embeddings"] == 4096
    for factors, ends in (("short_factor", short), ("long_factor", long)):
        factors = config.rope_parameters[factors]
        assert len(factors) == 48
        assert (factors[0], factors[-1]) == pytest.approx(ends, rel=1e-6)
        assert factors == sorted(factors)


def test_sliding_layers_of_gemma_3_turn_faster():
    for gemma in ("gemma-3-1b", "gemma-3-4b"):
        rope = AutoConfig.from_pretrained(MODELS[gemma]).rope_parameters["sliding_attention"]
        assert rope == {"rope_type": "default", "rope_theta": 1e4}


def test_window(name, config):
    facts = FACTS[name]
    assert getattr(config, "sliding_window", None) == facts.window
    every = ["sliding_attention" if facts.window else "full_attention"] * config.num_hidden_layers
    layers = getattr(config, "layer_types", None) or every
    assert len(layers) == config.num_hidden_layers
    assert layers.count("sliding_attention") == facts.sliding


@pytest.mark.parametrize("name", [name for name in sorted(MODELS) if "layer_types" in read(name)])
def test_layer_types_are_what_transformers_would_compute(name):
    """Where a file spells the layers out, the family's own rule must say the same."""
    written = read(name)
    spelled_out = written.pop("layer_types")
    assert AutoConfig.for_model(**written).layer_types == spelled_out


def test_rotated_layers_of_smollm3():
    layers = AutoConfig.from_pretrained(MODELS["smollm3-3b"]).no_rope_layers
    assert layers == [1, 1, 1, 0] * 9  # 0 is a layer without rotation

"""Every file in models/ means to transformers what its sources say."""

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from transformers import AutoConfig, AutoModel, PreTrainedConfig

MODELS = {path.stem: path for path in (Path(__file__).parents[2] / "models").glob("*.json")}


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
    "codellama-7b": Facts(32, 32, 128, 1e6),
    "command-r": Facts(64, 64, 128, 8e6),
    "command-r7b": Facts(32, 8, 128, 5e4, window=4096, sliding=24),
    "deepseek-r1-0528-qwen3-8b": Facts(32, 8, 128, 1e6, "yarn"),
    "deepseek-v2-lite": Facts(16, 16, 64, 1e4, "yarn"),
    "deepseek-v3": Facts(128, 128, 64, 1e4, "yarn"),
    "embeddinggemma-300m": Facts(3, 1, 256, 1e6, window=129, sliding=20),
    "esm2-t33-650m-ur50d": Facts(20, 20, 64, 1e4, biases="qkvo"),
    "falcon-40b": Facts(128, 8, 64, 1e4),
    "falcon-7b": Facts(71, 1, 64, 1e4),
    "gemma-2-27b": Facts(32, 16, 128, 1e4, window=4096, sliding=23),
    "gemma-2-2b": Facts(8, 4, 256, 1e4, window=4096, sliding=13),
    "gemma-2-9b": Facts(16, 8, 256, 1e4, window=4096, sliding=21),
    "gemma-2b": Facts(8, 1, 256, 1e4),
    "gemma-3-1b": Facts(4, 1, 256, 1e6, window=512, sliding=22),
    "gemma-3-4b": Facts(8, 4, 256, 1e6, "linear", window=1024, sliding=29),
    "glm-4-9b-chat": Facts(32, 2, 128, 1e4, turning=0.5, biases="qkv"),
    "gpt-j-6b": Facts(16, 16, 256, 1e4, turning=0.25),
    "gpt-neox-20b": Facts(64, 64, 96, 1e4, turning=0.25, biases="qkvo"),
    "gpt-oss-20b": Facts(64, 8, 64, 1.5e5, "yarn", window=128, sliding=12, biases="qkvo"),
    "granite-3.3-8b": Facts(32, 8, 128, 1e7),
    "lfm2-1.2b": Facts(32, 8, 64, 1e6),
    "llama-2-7b": Facts(32, 32, 128, 1e4),
    "llama-3.1-8b": Facts(32, 8, 128, 5e5, "llama3"),
    "llama-3.2-1b": Facts(32, 8, 64, 5e5, "llama3"),
    "llama-3.2-3b": Facts(24, 8, 128, 5e5, "llama3"),
    "ministral-3-3b": Facts(32, 8, 128, 1e6, "yarn"),
    "mistral-7b-v0.1": Facts(32, 8, 128, 1e4, window=4096, sliding=32),
    "mistral-7b-v0.3": Facts(32, 8, 128, 1e6),
    "mixtral-8x7b-v0.1": Facts(32, 8, 128, 1e6),
    "nomic-embed-text-v1.5": Facts(12, 12, 64, 1e3),
    "olmo-2-1124-7b": Facts(32, 32, 128, 5e5),
    "open-llama-3b": Facts(32, 32, 100, 1e4),
    "phi-3-mini-128k": Facts(32, 32, 96, 1e4, "longrope", window=131072, sliding=32),
    "phi-3-mini-4k": Facts(32, 32, 96, 1e4, window=2047, sliding=32),
    "phi-3.5-mini": Facts(32, 32, 96, 1e4, "longrope", window=262144, sliding=32),
    "phi-3.5-moe": Facts(32, 8, 128, 1e4, "longrope", window=131072, sliding=32, biases="qkvo"),
    "phi-4": Facts(40, 10, 128, 2.5e5, window=16384, sliding=40),
    "phi-4-mini": Facts(24, 8, 128, 1e4, "longrope", turning=0.75, window=262144, sliding=32),
    "qwen1.5-1.8b-chat": Facts(16, 16, 128, 1e6, biases="qkv"),
    "qwen1.5-moe-a2.7b": Facts(16, 16, 128, 1e6, biases="qkv"),
    "qwen2-7b": Facts(28, 4, 128, 1e6, biases="qkv"),
    "qwen2-vl-7b": Facts(28, 4, 128, 1e6, biases="qkv"),
    "qwen2.5-3b": Facts(16, 2, 128, 1e6, biases="qkv"),
    "qwen2.5-7b": Facts(28, 4, 128, 1e6, biases="qkv"),
    "qwen2.5-7b-instruct-1m": Facts(28, 4, 128, 1e7, biases="qkv"),
    "qwen3-4b-instruct-2507": Facts(32, 8, 128, 5e6),
    "qwen3-8b": Facts(32, 8, 128, 1e6),
    "redpajama-incite-3b": Facts(32, 32, 80, 1e4, biases="qkvo"),
    "smollm2-135m": Facts(9, 3, 64, 1e5),
    "smollm3-3b": Facts(16, 4, 128, 5e6),
    "stablelm-2-zephyr": Facts(32, 32, 64, 1e4, turning=0.25, biases="qkv"),
    "stablelm-3b-4e1t": Facts(32, 32, 80, 1e4, turning=0.25),
    "starcoder2-7b": Facts(36, 4, 128, 1e6, window=4096, sliding=32, biases="qkvo"),
    "tinyllama-1.1b-chat-v1.0": Facts(32, 4, 64, 1e4),
}

# Beyond theta: the numbers that shape the angles, per rotation.
YARN_40 = {
    "factor": 40,
    "original_max_position_embeddings": 4096,
    "beta_fast": 32,
    "beta_slow": 1,
}
LLAMA_3 = {
    "original_max_position_embeddings": 8192,
    "low_freq_factor": 1,
    "high_freq_factor": 4,
}
SCALED = {
    "deepseek-r1-0528-qwen3-8b": {
        "factor": 4,
        "original_max_position_embeddings": 32768,
        "attn_factor": 0.8782488562869419,  # there and unused
    },
    "deepseek-v2-lite": {**YARN_40, "mscale": 0.707, "mscale_all_dim": 0.707},
    "deepseek-v3": {**YARN_40, "mscale": 1, "mscale_all_dim": 1},
    "gemma-3-4b": {"factor": 8},
    "gpt-oss-20b": {**YARN_40, "factor": 32, "truncate": False},
    "llama-3.1-8b": {**LLAMA_3, "factor": 8},
    "llama-3.2-1b": {**LLAMA_3, "factor": 32},
    "llama-3.2-3b": {**LLAMA_3, "factor": 32},
    "ministral-3-3b": {
        **YARN_40,
        "factor": 16,
        "original_max_position_embeddings": 16384,
        "mscale": 1,
        "mscale_all_dim": 1,
        "llama_4_scaling_beta": 0.1,
    },
}

# A module of transformers and the projections it holds.
PROJECTIONS = {
    "query": "q",
    "key": "k",
    "value": "v",
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


def loaded(name: str) -> PreTrainedConfig:
    """As transformers reads the file; the text decoder's of a model of several towers."""
    return AutoConfig.from_pretrained(MODELS[name]).get_text_config()


@pytest.fixture(scope="module")
def config(name):
    return loaded(name)


@pytest.fixture(scope="module")
def model(config) -> torch.nn.Module:
    """The model as transformers builds it, shapes without storage."""
    with torch.device("meta"):
        return AutoModel.from_config(config)


def rope_of(config) -> dict:
    """The rotation of full attention, where sliding layers have another."""
    return config.rope_parameters.get("full_attention", config.rope_parameters)


def projections(model: torch.nn.Module) -> dict[str, torch.nn.Linear]:
    """The projections of the first attention layer, by the letters of what they hold."""
    attention = re.compile(
        r".*(layers?|h)\.(\d+)\.(self_attn|self_attention|attention|attn)\.(?:\w+\.)?(\w+)"
    )
    found: dict[str, torch.nn.Linear] = {}
    first = None
    for path, module in model.named_modules():
        match = attention.fullmatch(path)
        if match and match[4] in PROJECTIONS and match[2] == (first or match[2]):
            first = match[2]
            found[PROJECTIONS[match[4]]] = module
    return found


OURS = {"_name_or_path", "_source", "_certain", "_unconfirmed", "_note"}
"""What a file says of itself; every other key is the published file's."""


def test_there_are_facts_about_every_file():
    assert len(MODELS) >= 40
    assert set(MODELS) == set(FACTS)


def test_most_files_are_confirmed():
    assert sum(read(name)["_certain"] for name in MODELS) >= 25


def test_file_says_where_it_comes_from(name):
    written = read(name)
    assert list(written)[:3] == ["_name_or_path", "_source", "_certain"]
    assert re.fullmatch(r"[a-z0-9.-]+", name)
    assert len(written["_source"]) > 20
    assert isinstance(written["_certain"], bool)
    assert written.get("_note", "a note") != ""


def test_what_is_not_confirmed_is_marked(name):
    """A file whose text no public file has whole names the keys that stand there on trust."""
    written = read(name)
    unconfirmed = written.get("_unconfirmed", [])
    assert bool(unconfirmed) is not written["_certain"]
    assert set(unconfirmed) <= set(written) - OURS


def test_transformers_changes_no_value(name):
    """What a file says and transformers knows, it means; the older names of the rotation and of the
    type apart, and a window that a switch or a family's own rule changes."""
    written, config = read(name), AutoConfig.from_pretrained(MODELS[name])
    assert written["model_type"] == config.model_type
    elsewhere = {"rope_scaling", "rope_parameters", "torch_dtype", "dtype", "sliding_window"}
    elsewhere |= {"transformers_version", "text_config", "vision_config", "quantization_config"}
    elsewhere |= {"hidden_act"}  # Gemma's first files name another one than their models have
    known = {field.name for field in dataclasses.fields(config)} - elsewhere
    for key in sorted(known & {key for key in written if key[0] != "_"}):
        assert getattr(config, key) == written[key], key


def test_heads(name, config, model):
    facts = FACTS[name]
    assert config.num_attention_heads == facts.heads
    if hasattr(config, "num_key_value_heads"):
        assert config.num_key_value_heads == facts.kv_heads
    given = getattr(config, "head_dim", None)
    assert facts.head_dim == (given or config.hidden_size // facts.heads)
    if name.startswith("deepseek-v"):
        return  # test_latent_attention
    widths = {part: linear.out_features for part, linear in projections(model).items()}
    assert widths.pop("o") == config.hidden_size
    # Counted on transformers' weights: not every family has a key for its key and value heads.
    assert sum(widths.values()) == (facts.heads + 2 * facts.kv_heads) * facts.head_dim


def test_latent_attention():
    config = loaded("deepseek-v3")
    # DeepSeek-V3, arXiv:2412.19437, section 4.2: d_c, d_c', d_h, d_h^R.
    assert (config.kv_lora_rank, config.q_lora_rank) == (512, 1536)
    assert (config.qk_nope_head_dim, config.v_head_dim, config.qk_rope_head_dim) == (128, 128, 64)


def test_biases(name, model):
    biased = {part for part, linear in projections(model).items() if linear.bias is not None}
    assert set("".join(biased)) == set(FACTS[name].biases)


# model_type gptj and esm have no rope_parameters: test_gptj_rotation; ESM's base is in its code.
@pytest.mark.parametrize(
    "name", sorted(MODELS.keys() - {"gpt-j-6b", "esm2-t33-650m-ur50d"}), indirect=True
)
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
    rope = rope_of(loaded(scaled))
    for key in ("rope_type", "rope_theta", "type"):
        rope.pop(key, None)
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
    config = loaded(scaled)
    assert config.max_position_embeddings == 131072
    assert config.rope_parameters["original_max_position_embeddings"] == 4096
    for factors, ends in (("short_factor", short), ("long_factor", long)):
        factors = config.rope_parameters[factors]
        assert len(factors) == 48
        assert (factors[0], factors[-1]) == pytest.approx(ends, rel=1e-6)
        assert factors == sorted(factors)


def test_sliding_layers_of_gemma_3_turn_faster():
    for gemma in ("gemma-3-1b", "gemma-3-4b"):
        rope = loaded(gemma).rope_parameters["sliding_attention"]
        assert rope == {"rope_type": "default", "rope_theta": 1e4}


def test_window(name, config):
    facts = FACTS[name]
    assert (getattr(config, "sliding_window", None) or None) == facts.window
    every = ["sliding_attention" if facts.window else "full_attention"] * config.num_hidden_layers
    layers = getattr(config, "layer_types", None) or every
    assert len(layers) == config.num_hidden_layers
    assert layers.count("sliding_attention") == facts.sliding


def test_factors_on_cos_and_sin_of_phi_3_5_moe():
    """microsoft/Phi-3.5-MoE-instruct, as ports of it have them in their tests."""
    rope = loaded("phi-3.5-moe").rope_parameters
    assert rope["short_mscale"] == rope["long_mscale"] == 1.243163121016122
    assert len(rope["short_factor"]) == len(rope["long_factor"]) == 64


def test_rotated_layers_of_smollm3():
    layers = AutoConfig.from_pretrained(MODELS["smollm3-3b"]).no_rope_layers
    assert layers == [1, 1, 1, 0] * 9  # 0 is a layer without rotation

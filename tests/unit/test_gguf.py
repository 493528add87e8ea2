"""GGUF files as SOURCE, written by llama.cpp's own gguf package."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize, quantize

from rope_export import AttentionSpec
from rope_export.checkpoints import open_model
from rope_export.checkpoints.gguf.blocks import KINDS, integers_of
from rope_export.errors import CheckpointError, RopeExportError
from scripts.fetch_smollm2 import split_halves

SIZES = {"hidden": 256, "heads": 4, "kv_heads": 2, "head_dim": 64}
PLAIN = {"attn_q": (256, 256), "attn_k": (128, 256), "attn_v": (128, 256)}
PLAIN |= {"attn_output": (256, 256)}
NORMS = {"attn_q_norm": (64,), "attn_k_norm": (64,)}
WIDE = {"attn_q": (512, 256), "attn_k": (256, 256), "attn_v": (256, 256)}
WIDE |= {"attn_output": (256, 512), "attn_q_norm": (128,), "attn_k_norm": (128,)}
"""Heads of 128, which transformers' loader takes all of Qwen 3 to have."""
THEIRS = {"attn_q": "q_proj", "attn_k": "k_proj", "attn_v": "v_proj", "attn_output": "o_proj"}
THEIRS |= {"attn_q_norm": "q_norm", "attn_k_norm": "k_norm", "attn_qkv": "qkv_proj"}
KIND = gguf.GGMLQuantizationType


def written(
    path: Path,
    arch: str = "llama",
    kind: str = "F32",
    shapes: dict[str, tuple[int, ...]] | None = None,
    extra: dict[str, np.ndarray] | None = None,
    layers: int = 2,
    **fields: Any,
) -> dict[str, np.ndarray]:
    """Writes a file; returns what its tensors stand for by gguf's own dequantization."""
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(layers)
    writer.add_context_length(4096)
    writer.add_embedding_length(SIZES["hidden"])
    writer.add_feed_forward_length(512)
    writer.add_head_count(SIZES["heads"])
    writer.add_head_count_kv(SIZES["kv_heads"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(50_000.0)
    writer.add_vocab_size(8)
    for name, value in fields.items():
        if isinstance(value, list):
            getattr(writer, name)(*value)
        else:
            getattr(writer, name)(value)
    values = {}
    for layer in range(layers):
        for name, shape in (shapes or PLAIN).items():
            stream = np.random.default_rng([layer, *map(ord, name)])
            weight = stream.standard_normal(shape, np.float32) / np.float32(16)
            own = getattr(KIND, kind if len(shape) == 2 else "F32")
            full = f"blk.{layer}.{name}.weight"
            stored = quantize(weight, own)
            writer.add_tensor(full, stored, raw_dtype=own)
            values[full] = dequantize(stored, own)
    for name, value in (extra or {}).items():
        writer.add_tensor(name, value)
    embedding = np.zeros((8, SIZES["hidden"]), np.float32)
    writer.add_tensor("token_embd.weight", embedding)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_weights_are_what_gguf_dequantizes(kind, tmp_path) -> None:
    """Rounded once, and rows of q and k in transformers' order."""
    values = written(tmp_path / "tiny.gguf", kind=kind)
    for dtype in ("float32", "float16"):
        source = open_model(tmp_path / "tiny.gguf", dtype=dtype).layer(1)
        weights = source.weights()
        for name, there in THEIRS.items():
            if name not in PLAIN:
                continue
            wanted = values[f"blk.1.{name}.weight"]
            heads = {"attn_q": 4, "attn_k": 2}.get(name)
            wanted = wanted if heads is None else split_halves(wanted, heads)
            rounded = torch.from_numpy(wanted).to(getattr(torch, dtype))
            assert torch.equal(weights[f"{there}.weight"], rounded)
            assert source.names[f"{there}.weight"] == f"blk.1.{name}.weight"
    plain = kind in ("F32", "F16", "BF16")
    assert source.forms == ({} if plain else dict.fromkeys(weights, f"gguf {kind}"))
    integers = source.integers()
    assert integers.keys() == (set() if plain else weights.keys())
    for name, own in integers.items():
        assert torch.equal(own.weight().half(), weights[name])


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_taken_apart_stand_for_what_gguf_dequantizes(kind) -> None:
    """Blocks of any bytes, but for the scales, which are drawn as numbers."""
    own = getattr(KIND, kind)
    elements, size = gguf.GGML_QUANT_SIZES[own]
    stream = np.random.default_rng(0)
    blocks = stream.integers(0, 256, (24, size), dtype=np.uint8)
    halves = {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
    for at in halves.get(kind, (0,)):
        numbers = stream.standard_normal(24).astype(np.float16)
        blocks[:, at : at + 2] = numbers.view(np.uint8).reshape(-1, 2)
    data = blocks.reshape(8, 3 * size)
    found = integers_of(data, kind)
    assert found is not None
    np.testing.assert_array_equal(found.weight().numpy(), dequantize(data, own))
    assert found.values.shape == (8, 3 * elements)
    assert int(found.values.max()) == 2**found.bits - 1


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {"shapes": PLAIN, "add_rope_dimension_count": 64},
    "qwen2": {"shapes": PLAIN},
    "qwen3": {"shapes": WIDE, "add_key_length": 128, "add_value_length": 128},
    "gemma2": {"shapes": PLAIN, "add_key_length": 64, "add_value_length": 64}
    | {"add_sliding_window": 8, "add_attn_logit_softcapping": 50.0},
    "gemma3": {"shapes": PLAIN | NORMS, "add_key_length": 64, "add_value_length": 64}
    | {"add_sliding_window": 8},
    "phi3": {"shapes": {"attn_qkv": (512, 256), "attn_output": (256, 256)}}
    | {"add_rope_dimension_count": 64, "add_pad_token_id": 0, "add_eos_token_id": 1},
}


@pytest.mark.filterwarnings("ignore")  # transformers', about tokens that a tiny file has not
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_tensors_are_those_of_transformers_own_loader(arch, tmp_path) -> None:
    from transformers import AutoModelForCausalLM, GgufConfig

    facts = dict(ARCHITECTURES[arch])
    extra = {}
    if arch == "qwen2":
        sizes = {"attn_q": 256, "attn_k": 128, "attn_v": 128}
        for layer in range(2):
            for name, size in sizes.items():
                bias = np.arange(size, dtype=np.float32) + layer
                extra[f"blk.{layer}.{name}.bias"] = bias
    written(tmp_path / "tiny.gguf", arch, "Q8_0", extra=extra, **facts)
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path,
        gguf_file="tiny.gguf",
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    )
    theirs = dict(model.model.layers[1].self_attn.named_parameters())
    source = open_model(tmp_path / "tiny.gguf").layer(1)
    ours = source.weights()
    if "qkv_proj.weight" in theirs:
        parts = theirs.pop("qkv_proj.weight").split((256, 128, 128))
        theirs |= {f"{n}_proj.weight": x for n, x in zip("qkv", parts, strict=True)}
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(ours[name], value.detach()), name


CONFIGS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("llama", {}, {"rope_theta": 50_000.0}),
    (
        "llama",
        {"add_rope_scaling_type": gguf.RopeScalingType.LINEAR, "add_rope_scaling_factor": 4.0},
        {"rope_type": "linear", "factor": 4.0, "rope_theta": 50_000.0},
    ),
    (
        "qwen3",
        {"add_rope_scaling_type": gguf.RopeScalingType.YARN, "add_rope_scaling_factor": 4.0}
        | {"add_rope_scaling_orig_ctx_len": 1024},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
        | {"rope_theta": 50_000.0},
    ),
]


@pytest.mark.parametrize(("arch", "fields", "rope"), CONFIGS, ids=lambda x: str(x)[:30])
def test_the_rotation_is_that_of_the_checkpoint(arch, fields, rope, tmp_path) -> None:
    written(tmp_path / "tiny.gguf", arch, **(ARCHITECTURES[arch] | fields))
    config = {"model_type": arch, "hidden_size": 256, "num_attention_heads": 4}
    config |= {"num_key_value_heads": 2, "head_dim": 128 if arch == "qwen3" else 64}
    config |= {"num_hidden_layers": 2}
    config |= {"max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_parameters": rope}
    assert open_model(tmp_path / "tiny.gguf").layer().spec == AttentionSpec.from_hf(config)


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 8192}


def divisors(dim: int = 64, base: float = 50_000.0) -> np.ndarray:
    """What llama.cpp's converter writes for Llama 3.1.

    Source: ggml-org/llama.cpp, convert_hf_to_gguf.py, LlamaModel.generate_extra_tensors.
    """
    factors = []
    for freq in 1.0 / (base ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)):
        length = 2 * np.pi / float(freq)
        if length < 8192 / 4.0:
            factors.append(1.0)
        elif length > 8192 / 1.0:
            factors.append(8.0)
        else:
            smooth = (8192 / length - 1.0) / (4.0 - 1.0)
            factors.append(1 / ((1 - smooth) / 8.0 + smooth))
    return np.array(factors, np.float32)


def test_llama_3_scaling_is_read_from_its_divisors(tmp_path) -> None:
    """Loaders that leave rope_freqs out rotate otherwise: vllm-project/vllm #7268."""
    path = tmp_path / "tiny.gguf"
    written(path, extra={"rope_freqs.weight": divisors()})
    config = {"model_type": "llama", "hidden_size": 256, "num_attention_heads": 4}
    config |= {"num_key_value_heads": 2, "num_hidden_layers": 2, "rms_norm_eps": 1e-5}
    rope = {"rope_type": "llama3", "rope_theta": 50_000.0, **LLAMA3}
    assert open_model(path).layer().spec == AttentionSpec.from_hf(
        config | {"rope_parameters": rope}
    )
    written(path, extra={"rope_freqs.weight": divisors() * np.float32(1.5)})
    with pytest.raises(RopeExportError, match="rope_freqs"):
        open_model(path).layer()


def test_gemma_has_what_llama_cpp_knows_of_it(tmp_path) -> None:
    """Scale, softcap, windows and two bases, as its config has them."""
    common = {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}
    common |= {"head_dim": 64, "num_hidden_layers": 12, "rms_norm_eps": 1e-5}
    common |= {"sliding_window": 8, "query_pre_attn_scalar": 64}
    facts = {"layers": 12, "add_key_length": 64, "add_value_length": 64, "add_sliding_window": 8}
    written(tmp_path / "two.gguf", "gemma2", add_attn_logit_softcapping=30.0, **facts)
    two = {**common, "model_type": "gemma2", "attn_logit_softcapping": 30.0}
    two |= {"rope_theta": 50_000.0}
    scaling = {"add_rope_scaling_type": gguf.RopeScalingType.LINEAR}
    scaling |= {"add_rope_scaling_factor": 8.0}
    written(tmp_path / "three.gguf", "gemma3", shapes=PLAIN | NORMS, **facts, **scaling)
    three = {**common, "model_type": "gemma3_text", "rope_theta": 50_000.0}
    three |= {"rope_local_base_freq": 10_000.0, "rope_scaling": {"rope_type": "linear"}}
    three["rope_scaling"] |= {"factor": 8.0}
    for layer in (0, 5, 6, 11):
        for name, config in (("two", two), ("three", three)):
            found = open_model(tmp_path / f"{name}.gguf").layer(layer).spec
            assert found == AttentionSpec.from_hf(config, layer=layer), (name, layer)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "architecture": ({"arch": "mamba"}, "general.architecture='mamba'.*llama"),
    "scaling": (
        {"add_rope_scaling_type": gguf.RopeScalingType.LONGROPE, "add_rope_scaling_factor": 2.0},
        "rope.scaling",
    ),
    "partial": ({"add_rope_dimension_count": 32}, "dimension_count=32"),
    "window": ({"add_sliding_window": 8}, "sliding_window=8"),
    "clamp": ({"add_clamp_kqv": 8.0}, "clamp_kqv"),
    "norm": ({"shapes": PLAIN | NORMS}, "attn_.*norm.*says nothing"),
    "heads by layer": ({"add_head_count_kv": [[2, 4]]}, "head_count_kv"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_read_is_refused_by_name(name, tmp_path) -> None:
    given, named = REFUSED[name]
    written(tmp_path / "tiny.gguf", **given)
    with pytest.raises(RopeExportError, match=named) as error:
        open_model(tmp_path / "tiny.gguf").layer().weights()
    assert "\n" not in str(error.value)


def test_damaged_files_are_refused(tmp_path) -> None:
    path = tmp_path / "tiny.gguf"
    written(path)
    whole = path.read_bytes()
    for damaged in (b"", b"GGUF", b"none" + whole[4:], whole[:200], whole[:-5000]):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"tiny\.gguf.*GGUF"):
            open_model(path).layer().weights()
    with pytest.raises(CheckpointError, match="part='vision_config'"):
        open_model(path, part="vision_config").layer()


def test_smollm2_is_read_as_its_folder_is(smollm2, smollm2_gguf) -> None:
    for layer in (0, 29):
        file = open_model(smollm2_gguf).layer(layer)
        folder = open_model(smollm2).layer(layer)
        assert file.spec == folder.spec
        ours, theirs = file.weights(), folder.weights()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)

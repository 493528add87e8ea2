"""Every parameter of a decoder is what transformers' own from_pretrained loads from the source."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GgufConfig

from rope_export.checkpoints import open_model
from rope_export.decoder.model import causal_lm
from rope_export.decoder.source import config_of
from rope_export.decoder.weights import DecoderWeights
from rope_export.errors import CheckpointError
from rope_export.reading.models import quiet
from tests.conformance.families import saved
from tests.conformance.families.building import TinyModel
from tests.conformance.families.shrinking import tiny_config_for
from tests.support.peft_adapters import adapted, model_in, peft
from tests.unit.test_gguf import ARCHITECTURES, written

pytestmark = pytest.mark.filterwarnings("ignore")

FAMILIES = {
    "llama": "LlamaForCausalLM",
    "mixtral": "MixtralForCausalLM",  # experts are stacked
    "gpt_neox": "GPTNeoXForCausalLM",  # q, k and v lie together
    "gemma3": "Gemma3ForConditionalGeneration",  # towers, a tied head
    "deepseek_v3": "DeepseekV3ForCausalLM",  # a buffer that is learned
    "gpt_oss": "GptOssForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "phi3": "Phi3ForCausalLM",
}


def tiny_folder(family: str, cls: Any, folder: Path, **changes: Any) -> Path:
    """A tiny model of a family as transformers saves it."""
    config = tiny_config_for(cls, family)
    for key, value in changes.items():
        setattr(config, key, value)
    with quiet():
        saved.save(TinyModel(family, "plain", cls, config, ()), folder)
    return folder


def weights_of(source: Path | str, dtype: Any = "float32", **options: Any) -> DecoderWeights:
    with quiet():
        opened = open_model(source, dtype=dtype, **options)
        lm = causal_lm(config_of(opened), getattr(torch, dtype))
        return DecoderWeights(lm.model, opened, dtype)


def assert_same(ours: DecoderWeights, theirs: dict[str, torch.Tensor]) -> None:
    assert set(ours.names) == set(theirs)
    for name, tensor in theirs.items():
        own = ours.tensor(name)
        assert own.dtype == tensor.dtype
        assert torch.equal(own, tensor), name


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_are_those_of_from_pretrained(family, tmp_path) -> None:
    import transformers

    cls = getattr(transformers, FAMILIES[family])
    folder = tiny_folder(family, cls, tmp_path)
    with quiet():
        theirs = cls.from_pretrained(folder, dtype=torch.float32)
        ours = weights_of(folder)
    assert_same(ours, theirs.state_dict())
    once = {x.data_ptr(): x.numel() * 4 for x in theirs.parameters()}
    buffers = [x for name, x in theirs.named_buffers() if name in theirs.state_dict()]
    assert ours.nbytes == sum(once.values()) + sum(x.numel() * 4 for x in buffers)
    read = [name for x in ours.names for name in ours.facts(x).names]
    unread = set(load_file(folder / "model.safetensors")) - set(read)
    assert not unread


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_values_are_rounded_once(dtype, tmp_path) -> None:
    folder = model_in(tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    assert_same(weights_of(folder, dtype), theirs.state_dict())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_what_transformers_keeps_in_float32_is_not_rounded(dtype, tmp_path) -> None:
    """Routers and what they are corrected by."""
    from transformers import DeepseekV3ForCausalLM

    folder = tiny_folder("deepseek_v3", DeepseekV3ForCausalLM, tmp_path)
    with quiet():
        theirs = DeepseekV3ForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    kept = {name for name, x in theirs.state_dict().items() if x.dtype is torch.float32}
    assert any(name.endswith("gate.weight") for name in kept)
    assert_same(weights_of(folder, dtype), theirs.state_dict())


@pytest.mark.parametrize("kind", ["llava", "gemma3"])
def test_the_text_decoder_of_a_multimodal_folder(kind, tmp_path) -> None:
    """A causal LM in it, under other names there."""
    from transformers import Gemma3ForConditionalGeneration, LlavaForConditionalGeneration

    cls: Any = {"llava": LlavaForConditionalGeneration, "gemma3": Gemma3ForConditionalGeneration}
    folder = tiny_folder(kind, cls[kind], tmp_path)
    with quiet():
        whole = cls[kind].from_pretrained(folder, dtype=torch.float32)
        opened = open_model(folder)
        lm = causal_lm(config_of(opened).get_text_config(), torch.float32)
        ours = DecoderWeights(lm.model, opened, "float32")
    text = {f"model.{name}": x for name, x in whole.model.language_model.state_dict().items()}
    assert_same(ours, {**text, "lm_head.weight": whole.lm_head.weight})


def test_an_adapter_of_every_module_is_merged_as_peft_merges_it(tmp_path) -> None:
    base = model_in(tmp_path / "base")
    modules = ["q_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    adapter = adapted(base, tmp_path / "adapter", target_modules=modules)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(base)
        merged = peft.PeftModel.from_pretrained(model, adapter).merge_and_unload()
    ours = weights_of(base, adapter=adapter)
    assert_same(ours, merged.state_dict())
    assert ours.facts("model.layers.1.mlp.up_proj.weight").adapter
    assert not ours.facts("model.layers.1.self_attn.k_proj.weight").adapter


def test_an_adapter_of_another_model_is_refused(tmp_path) -> None:
    base = model_in(tmp_path / "base")
    adapter = adapted(base, tmp_path / "adapter", target_modules=["up_proj"])
    file = adapter / "adapter_model.safetensors"
    other = {name.replace("up_proj", "wide_proj"): x for name, x in load_file(file).items()}
    save_file(other, file)
    with pytest.raises(CheckpointError, match=r"adapts '.*wide_proj', which this model does not"):
        weights_of(base, adapter=adapter)


LAYER = {"ffn_gate": (512, 256), "ffn_up": (512, 256), "ffn_down": (256, 512)}
NORMS = {"attn_norm": (256,), "ffn_norm": (256,)}
GEMMA = {"post_attention_norm": (256,), "post_ffw_norm": (256,)}


def gguf_file(path: Path, arch: str) -> Path:
    """A small model of that architecture, whole."""
    shapes = {**LAYER, **NORMS, **(GEMMA if arch.startswith("gemma") else {})}
    if arch == "phi3":
        shapes = {**shapes, "ffn_up": (1024, 256)}
        del shapes["ffn_gate"]
    stream = np.random.default_rng(0)
    extra = {
        f"blk.{layer}.{name}.weight": stream.standard_normal(shape, np.float32)
        for layer in range(2)
        for name, shape in shapes.items()
    }
    extra["output_norm.weight"] = stream.standard_normal(256, np.float32)
    written(path, arch, "Q8_0", extra=extra, **ARCHITECTURES[arch])
    return path


@pytest.mark.parametrize("arch", ["llama", "qwen3", "phi3", "gemma2", "gemma3"])
def test_a_gguf_file_is_what_transformers_own_loader_makes_of_it(arch, tmp_path) -> None:
    gguf_file(tmp_path / "tiny.gguf", arch)
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path,
        gguf_file="tiny.gguf",
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    )
    ours = weights_of(tmp_path / "tiny.gguf")
    assert_same(ours, theirs.state_dict())
    assert ours.facts("model.layers.1.self_attn.o_proj.weight").form == "gguf Q8_0"


def test_quantized_weights_are_what_their_format_defines(tmp_path) -> None:
    """FP8 in blocks: value times scale, of every linear layer."""
    base = model_in(tmp_path)
    quantized, expected = {}, {}
    for name, tensor in load_file(base / "model.safetensors").items():
        if name.endswith("_proj.weight"):
            quantized[f"{name}_scale_inv"] = torch.full((1, 1), 0.5)
            tensor = (tensor * 2).to(torch.float8_e4m3fn)
            expected[name] = tensor.float() * 0.5
        quantized[name] = tensor
    save_file(quantized, base / "model.safetensors", {"format": "pt"})
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [64, 64]}
    (base / "config.json").write_text(json.dumps(config))
    ours = weights_of(base)
    for name, tensor in expected.items():
        assert torch.equal(ours.tensor(name), tensor), name
    facts = ours.facts("model.layers.0.mlp.up_proj.weight")
    assert facts.form == "fp8"
    assert facts.names == tuple(
        f"model.layers.0.mlp.up_proj.{x}" for x in ("weight", "weight_scale_inv")
    )


@pytest.mark.parametrize("family", ["llama", "gemma2", "mixtral", "gpt_oss"])
def test_drawn_weights_keep_a_model_of_order_one(family, tmp_path) -> None:
    """The same for the same seed, read as a checkpoint of them is, and none hides another."""
    import transformers

    cls = getattr(transformers, FAMILIES.get(family, "Gemma2ForCausalLM"))
    config = tiny_config_for(cls, family)
    config.hidden_size, config.vocab_size = 128, 512
    config.architectures = [cls.__name__]
    file = tmp_path / "config.json"
    config.to_json_file(file)
    ours, again, other = (weights_of(file, seed=seed) for seed in (3, 3, 4))
    state = {name: ours.tensor(name) for name in ours.names}
    for name, tensor in state.items():
        assert torch.equal(tensor, again.tensor(name))
        assert not torch.equal(tensor, other.tensor(name))
    with quiet():
        model = cls(config).eval()
        model.load_state_dict(state)
        with torch.no_grad():
            found = model(torch.arange(40)[None], output_hidden_states=True)
    sizes = [x.std() for x in (*found.hidden_states, found.logits)]
    assert min(sizes) > 0.02, sizes
    assert max(sizes) < 20, sizes
    layer = ours.layer(1)
    assert torch.equal(
        layer.weights()["o_proj.weight"], state["model.layers.1.self_attn.o_proj.weight"]
    )
    assert torch.equal(layer.weight("o_proj.weight"), layer.weights()["o_proj.weight"])


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return model_in(tmp_path_factory.mktemp("base"))


def changed(base: Path, folder: Path, name: str, tensor: torch.Tensor | None) -> Path:
    shutil.copytree(base, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors.pop(name)
    save_file(tensors | ({} if tensor is None else {name: tensor}), folder / "model.safetensors")
    return folder


NAME = "model.layers.1.mlp.up_proj.weight"
WRONG = {
    "missing": (None, "float32", "is missing: no tensor"),
    "shape": (torch.zeros(3, 3), "float32", r"has shape \(3, 3\), the config asks for \(32, 64\)"),
    "not finite": (torch.full((32, 64), torch.nan), "float32", "2048 values that are NaN"),
    "too large": (torch.full((32, 64), 1e6), "float16", "beyond float16"),
    "integers": (torch.zeros(32, 64, dtype=torch.int32), "float32", "has dtype torch.int32"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_faulty_tensor_is_refused_in_one_line(fault, base, tmp_path) -> None:
    tensor, dtype, told = WRONG[fault]
    folder = changed(base, tmp_path / "changed", NAME, tensor)
    with pytest.raises(CheckpointError, match=told) as error:
        weights_of(folder, dtype).tensor(NAME)
    assert NAME in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_shard_is_named_before_anything_is_read(base, tmp_path) -> None:
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(base)
        model.save_pretrained(tmp_path, max_shard_size="20KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2
    assert_same(weights_of(tmp_path), model.state_dict())
    shards[1].unlink()
    with pytest.raises(CheckpointError, match=f"the file {shards[1].name} is missing"):
        weights_of(tmp_path)


def test_a_head_that_is_tied_by_the_config_and_another_by_the_file_is_refused(
    base, tmp_path
) -> None:
    folder = Path(shutil.copytree(base, tmp_path / "tied"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    ours = weights_of(folder)
    with pytest.raises(CheckpointError, match=r"are one parameter by the config"):
        ours.tensor("lm_head.weight")

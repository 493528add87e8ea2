"""LoRA adapters, written by PEFT: merged as PEFT merges them, or refused by name."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

from rope_export import export, verify
from rope_export.checkpoints import open_model
from rope_export.checkpoints.adapter import Adapter
from rope_export.cli import run
from rope_export.errors import ArtifactError, CheckpointError
from rope_export.parity.layer.reading import ask_transformers
from tests.support.peft_adapters import SMALL, adapted, merged, model_in, peft

pytestmark = pytest.mark.usefixtures("short_prompts")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_in(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def plain_adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return adapted(base, tmp_path_factory.mktemp("adapter") / "plain")


def is_as_peft(base: Path, adapter: Path, dtype: str = "float32", layer: int = 0) -> bool:
    ours = open_model(base, adapter=adapter, dtype=dtype).layer(layer).weights()
    theirs = merged(base, adapter, dtype, layer)
    assert ours.keys() == theirs.keys()
    plain = open_model(base, dtype=dtype).layer(layer).weights()
    assert any(not torch.equal(ours[name], plain[name]) for name in ours)
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


LORA: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "ranks": {"rank_pattern": {"q_proj": 8, r"layers\.\d+\.self_attn\.k_proj": 2}},
    "alphas": {"alpha_pattern": {"layers.0.self_attn.v_proj": 32, "v_proj": 1}, "lora_alpha": 3},
    "one layer": {"layers_to_transform": [0], "layers_pattern": "layers"},
    "part": {"target_modules": ["q_proj", "v_proj", "up_proj"]},
    "pattern": {"target_modules": r".*\.self_attn\.(q|o)_proj"},
    "all": {"target_modules": "all-linear", "modules_to_save": ["lm_head"]},
    "transposed": {"fan_in_fan_out": True},  # PEFT sets it to false for torch.nn.Linear
    "gaussian": {"init_lora_weights": "gaussian"},
    "embeddings": {"trainable_token_indices": [1, 2]},
}


@pytest.mark.parametrize("options", LORA.values(), ids=LORA)
def test_an_adapter_is_merged_as_peft_merges_it(base, tmp_path, options) -> None:
    assert is_as_peft(base, adapted(base, tmp_path / "adapter", **options))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_sum_is_rounded_once_to_the_artifacts_dtype(base, tmp_path, dtype) -> None:
    """From a base of that dtype as PEFT does it: float32 products, added, rounded."""
    half = tmp_path / "half"
    AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype)).save_pretrained(half)
    assert is_as_peft(half, adapted(base, tmp_path / "adapter"), dtype)


def test_a_second_layer_has_its_own_tensors(base, tmp_path) -> None:
    assert is_as_peft(base, adapted(base, tmp_path / "adapter"), layer=1)


def test_quantized_weights_are_dequantized_before_the_merge(base, tmp_path) -> None:
    """FP8 in blocks, by its definition: value times scale, then PEFT's product added."""
    adapter = adapted(base, tmp_path / "adapter", target_modules=["q_proj"])
    folder = Path(shutil.copytree(base, tmp_path / "fp8"))
    whole = load_file(folder / "model.safetensors")
    quantized = {}
    for name, tensor in whole.items():
        if name.endswith("_proj.weight"):
            quantized[f"{name}_scale_inv"] = torch.full((1, 1), 0.5)
            tensor = (tensor * 2).to(torch.float8_e4m3fn)
        quantized[name] = tensor
    save_file(quantized, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [64, 64]}
    (folder / "config.json").write_text(json.dumps(config))
    ours = open_model(folder, adapter=adapter).layer()
    name = "model.layers.0.self_attn.q_proj.weight"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(base)
        lora = peft.PeftModel.from_pretrained(model, adapter)
    module = lora.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    added = module.get_delta_weight("default").detach()
    assert torch.equal(ours.weights()["q_proj.weight"], quantized[name].float() * 0.5 + added)
    assert "q_proj.weight" not in ours.forms
    assert ours.forms["k_proj.weight"] == "fp8"


def test_a_base_without_its_head_takes_the_adapter_of_the_whole_model(base, tmp_path) -> None:
    adapter = adapted(base, tmp_path / "adapter")
    AutoModelForCausalLM.from_pretrained(base).model.save_pretrained(tmp_path / "headless")
    ours = open_model(tmp_path / "headless", adapter=adapter).layer().weights()
    theirs = merged(base, adapter)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_adapter_belongs_to_what_is_proven(base, tmp_path, capsys) -> None:
    """Recorded, hashed, found again, told apart from another, and missed."""
    adapter = adapted(base, tmp_path / "adapter")
    out = tmp_path / "layer"
    assert run(["export", str(base), "--adapter", str(adapter), "--out", str(out)]) == 0
    assert "weights proven" in capsys.readouterr().out
    facts = json.loads((out / "manifest.json").read_text())["source"]
    assert str(tmp_path) not in json.dumps(facts)
    assert facts["adapter"]["merged"]["model.layers.0.self_attn.q_proj.weight"]["scale"] == 1.5
    assert (
        json.loads((out / "evidence.json").read_text())["parity"]["reading"]["status"] == "proven"
    )
    adapter.rename(tmp_path / "moved")
    report = verify(out)
    assert (report.status, report.weights) == ("passed", "unproven")
    assert verify(out, adapter=tmp_path / "moved").weights == "proven"
    with pytest.raises(CheckpointError, match="`adapter` takes"):
        verify(out, source=base)
    other = adapted(base, tmp_path / "other", lora_alpha=7)
    with pytest.raises(ArtifactError, match="is not what was merged"):
        verify(out, adapter=other)


@pytest.mark.parametrize("wrong", [None, "scale", "left out"])
def test_peft_in_transformers_module_is_the_second_reading(
    base, plain_adapter, monkeypatch, wrong
) -> None:
    source = open_model(base, adapter=plain_adapter).layer()
    right = Adapter.product
    if wrong == "scale":
        monkeypatch.setattr(Adapter, "product", lambda *given: right(*given) / 2)
    elif wrong == "left out":
        monkeypatch.setattr(Adapter, "product", lambda *given: right(*given) * 0)
    found = ask_transformers(source.spec, source.facts, source.path, source.adapter)
    assert found.status == ("failed" if wrong else "proven")


def test_an_adapter_for_other_modules_changes_nothing_and_says_so(base, tmp_path) -> None:
    adapter = adapted(base, tmp_path / "adapter", target_modules=["up_proj", "lm_head"])
    source = open_model(base, adapter=adapter).layer()
    plain = open_model(base).layer().weights()
    assert all(torch.equal(tensor, plain[name]) for name, tensor in source.weights().items())
    assert any("changes nothing in this layer" in note for note in source.notes)
    others = adapted(base, tmp_path / "others", layers_to_transform=[1], layers_pattern="layers")
    assert not open_model(base, adapter=others).layer().facts["adapter"]["merged"]


def test_an_adapter_beside_a_model_must_be_asked_for(base, tmp_path) -> None:
    """transformers merges it or not, by whether PEFT is installed."""
    folder = Path(shutil.copytree(base, tmp_path / "both"))
    for path in adapted(base, tmp_path / "adapter").iterdir():
        shutil.copy(path, folder)
    with pytest.raises(CheckpointError, match=r"^[^\n]*beside the model\. Give `adapter`=[^\n]*$"):
        open_model(folder).layer()
    source = open_model(folder, adapter="none").layer()
    plain = open_model(base).layer().weights()
    assert all(torch.equal(tensor, plain[name]) for name, tensor in source.weights().items())
    assert "the adapter beside the model is not merged." in source.notes
    ours = open_model(folder, adapter=folder).layer().weights()
    theirs = merged(base, tmp_path / "adapter")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    with pytest.raises(CheckpointError, match="there would be two"):
        open_model(folder, adapter=tmp_path / "adapter").layer()


def test_an_adapter_in_a_folder_below_is_told_of(base, tmp_path) -> None:
    folder = Path(shutil.copytree(base, tmp_path / "both"))
    adapted(base, folder / "lora_adapter")
    assert "the adapter in lora_adapter/ is not merged." in open_model(folder).layer().notes


def test_an_adapter_that_came_later_does_not_touch_what_was_exported(base, tmp_path) -> None:
    folder = Path(shutil.copytree(base, tmp_path / "both"))
    artifact = export(folder, out=tmp_path / "layer", cache="none")
    for path in adapted(base, tmp_path / "adapter").iterdir():
        shutil.copy(path, folder)
    assert verify(artifact).weights == "proven"


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two towers, saved by transformers under its older, published names."""
    text = {**SMALL, "model_type": "qwen2_vl_text", "hidden_size": 32}
    del text["head_dim"], text["attention_bias"]
    text["rope_parameters"] = {
        "rope_type": "default",
        "rope_theta": 1e4,
        "mrope_section": [1, 1, 2],
    }
    vision = {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2}
    folder = tmp_path_factory.mktemp("qwen") / "model"
    torch.manual_seed(0)
    model = Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=vision))
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.normal_(std=0.2)
    model.save_pretrained(folder)
    return folder


def test_an_adapter_of_a_model_of_two_towers_goes_to_its_tower(qwen, tmp_path) -> None:
    """transformers' modules are called model.language_model.…, its files model.…"""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = Qwen2VLForConditionalGeneration.from_pretrained(qwen)
        lora = peft.LoraConfig(r=2, target_modules=["q_proj", "qkv"], init_lora_weights=False)
        adapter = peft.get_peft_model(model, lora)
        adapter.save_pretrained(tmp_path / "adapter")
        whole = adapter.merge_and_unload()
    text = open_model(qwen, adapter=tmp_path / "adapter").layer()
    theirs = whole.model.language_model.layers[0].self_attn.q_proj.weight
    assert torch.equal(text.weights()["q_proj.weight"], theirs)
    tower = open_model(qwen, adapter=tmp_path / "adapter", part="vision_config").layer().weights()
    queries = whole.model.visual.blocks[0].attn.qkv.weight[:32]
    assert torch.equal(tower["q_proj.weight"], queries)


def test_modules_saved_whole_outside_the_attention_do_not_matter(base, tmp_path) -> None:
    assert is_as_peft(base, adapted(base, tmp_path / "adapter", modules_to_save=["norm"]))


def test_transformers_reads_an_adapter_beside_a_model(base, tmp_path) -> None:
    """Why one that lies beside is not left out without a word."""
    folder = Path(shutil.copytree(base, tmp_path / "both"))
    for path in adapted(base, tmp_path / "adapter").iterdir():
        shutil.copy(path, folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert any("lora_A" in name for name, _ in loaded.named_parameters())

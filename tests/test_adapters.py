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
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

from rope_export import export, verify
from rope_export.checkpoints import open_source
from rope_export.checkpoints.adapter import Adapter
from rope_export.cli import run
from rope_export.errors import ArtifactError, CheckpointError
from rope_export.parity.reading import reading
from tests.conftest import TINY

peft = pytest.importorskip("peft", reason="needs the extra [test]")

SMALL = {**TINY, "vocab_size": 32, "intermediate_size": 32, "attention_bias": True}
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj"]
ATTENTION = "base_model.model.model.layers.0.self_attn."


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "model"
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SMALL))
    with torch.no_grad():
        for tensor in model.parameters():  # biases are zero at first
            tensor.normal_(std=0.2)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def plain_adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return adapted(base, tmp_path_factory.mktemp("adapter") / "plain")


def adapted(base: Path, folder: Path, **options: Any) -> Path:
    """An adapter as PEFT saves it, none of whose tensors is zero."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = {"r": 4, "lora_alpha": 6, "target_modules": PROJECTIONS}
        kind = options.pop("kind", peft.LoraConfig)
        given = kind(**{**(config if kind is peft.LoraConfig else {}), **options})
        model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), given)
        torch.manual_seed(1)
        with torch.no_grad():
            for tensor in (p for p in model.parameters() if p.requires_grad):
                tensor.normal_(std=0.2)
        model.save_pretrained(folder)
    return folder


def merged(base: Path, adapter: Path, dtype: str = "float32", layer: int = 0) -> dict[str, Any]:
    """One layer's projections as PEFT merges them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype))
        whole = peft.PeftModel.from_pretrained(model, adapter).merge_and_unload()
    attention = whole.model.layers[layer].self_attn
    return {name: tensor.detach() for name, tensor in attention.state_dict().items()}


def is_as_peft(base: Path, adapter: Path, dtype: str = "float32", layer: int = 0) -> bool:
    ours = open_source(base, adapter=adapter, dtype=dtype, layer=layer).weights()
    theirs = merged(base, adapter, dtype, layer)
    assert ours.keys() == theirs.keys()
    plain = open_source(base, dtype=dtype, layer=layer).weights()
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
    ours = open_source(folder, adapter=adapter)
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
    ours = open_source(tmp_path / "headless", adapter=adapter).weights()
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
    with pytest.raises(CheckpointError, match="--adapter"):
        verify(out, source=base)
    other = adapted(base, tmp_path / "other", lora_alpha=7)
    with pytest.raises(ArtifactError, match="is not what was merged"):
        verify(out, adapter=other)


@pytest.mark.parametrize("wrong", [None, "scale", "left out"])
def test_peft_in_transformers_module_is_the_second_reading(
    base, plain_adapter, monkeypatch, wrong
) -> None:
    source = open_source(base, adapter=plain_adapter)
    right = Adapter.product
    if wrong == "scale":
        monkeypatch.setattr(Adapter, "product", lambda *given: right(*given) / 2)
    elif wrong == "left out":
        monkeypatch.setattr(Adapter, "product", lambda *given: right(*given) * 0)
    found = reading(source.spec, source.facts, source.path, source.adapter)
    assert found.status == ("failed" if wrong else "proven")


def test_an_adapter_for_other_modules_changes_nothing_and_says_so(base, tmp_path) -> None:
    adapter = adapted(base, tmp_path / "adapter", target_modules=["up_proj", "lm_head"])
    source = open_source(base, adapter=adapter)
    plain = open_source(base).weights()
    assert all(torch.equal(tensor, plain[name]) for name, tensor in source.weights().items())
    assert any("changes nothing in this layer" in note for note in source.notes)
    others = adapted(base, tmp_path / "others", layers_to_transform=[1], layers_pattern="layers")
    assert not open_source(base, adapter=others).facts["adapter"]["merged"]


def test_an_adapter_beside_a_model_must_be_asked_for(base, tmp_path) -> None:
    """transformers merges it or not, by whether PEFT is installed."""
    folder = Path(shutil.copytree(base, tmp_path / "both"))
    for path in adapted(base, tmp_path / "adapter").iterdir():
        shutil.copy(path, folder)
    with pytest.raises(CheckpointError, match=r"^[^\n]*beside the model\. Give --adapter[^\n]*$"):
        open_source(folder)
    source = open_source(folder, adapter="none")
    plain = open_source(base).weights()
    assert all(torch.equal(tensor, plain[name]) for name, tensor in source.weights().items())
    assert "the adapter beside the model is not merged." in source.notes
    ours = open_source(folder, adapter=folder).weights()
    theirs = merged(base, tmp_path / "adapter")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    with pytest.raises(CheckpointError, match="there would be two"):
        open_source(folder, adapter=tmp_path / "adapter")


def test_an_adapter_in_a_folder_below_is_told_of(base, tmp_path) -> None:
    folder = Path(shutil.copytree(base, tmp_path / "both"))
    adapted(base, folder / "lora_adapter")
    assert "the adapter in lora_adapter/ is not merged." in open_source(folder).notes


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
    text = open_source(qwen, adapter=tmp_path / "adapter")
    theirs = whole.model.language_model.layers[0].self_attn.q_proj.weight
    assert torch.equal(text.weights()["q_proj.weight"], theirs)
    tower = open_source(qwen, adapter=tmp_path / "adapter", part="vision_config").weights()
    queries = whole.model.visual.blocks[0].attn.qkv.weight[:32]
    assert torch.equal(tower["q_proj.weight"], queries)


@pytest.mark.parametrize("config", [False, True])
def test_an_adapters_folder_alone_says_what_it_is(base, tmp_path, config) -> None:
    folder = adapted(base, tmp_path / "adapter")
    if config:  # some trainers save the model's config beside it
        shutil.copy(base / "config.json", folder)
    for asked in (None, folder) if config else (None,):
        with pytest.raises(CheckpointError, match=r"^[^\n]*as SOURCE[^\n]*--adapter\.$") as error:
            open_source(folder, adapter=asked)
    assert config or str(base) in str(error.value)


def test_a_folder_that_is_no_adapter_is_refused(base, tmp_path) -> None:
    for wrong in (base, tmp_path / "gone"):
        with pytest.raises(CheckpointError, match=r"no adapter|no such folder"):
            open_source(base, adapter=wrong)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(TINY))
    with pytest.raises(CheckpointError, match="as SOURCE"):
        open_source(config, adapter=base)


REFUSED: dict[str, dict[str, Any]] = {
    "use_dora": {"use_dora": True},
    "bias": {"bias": "lora_only"},
    "lora_bias": {"lora_bias": True},
    "init_lora_weights": {"init_lora_weights": "pissa"},
    "peft_type='IA3'": {
        "kind": peft.IA3Config,
        "target_modules": ["k_proj", "v_proj", "down_proj"],
        "feedforward_modules": ["down_proj"],
    },
    "peft_type='LOHA'": {"kind": peft.LoHaConfig, "target_modules": ["q_proj"]},
    "self_attn.q_proj": {"target_modules": ["v_proj"], "modules_to_save": ["q_proj"]},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_more_than_a_and_b_is_refused_by_name(base, tmp_path, name) -> None:
    adapter = adapted(base, tmp_path / "adapter", **REFUSED[name])
    with pytest.raises(CheckpointError, match=rf"^[^\n]*{name}[^\n]*merge_and_unload[^\n]*$"):
        open_source(base, adapter=adapter)


def test_modules_saved_whole_outside_the_attention_do_not_matter(base, tmp_path) -> None:
    assert is_as_peft(base, adapted(base, tmp_path / "adapter", modules_to_save=["norm"]))


def edited(adapter: Path, **changes: Any) -> Path:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return adapter


def test_a_key_that_nobody_knows_of_is_refused_where_it_is_set(base, tmp_path) -> None:
    adapter = edited(adapted(base, tmp_path / "adapter"), use_newlora=None)
    open_source(base, adapter=adapter)
    with pytest.raises(CheckpointError, match="use_newlora=True"):
        open_source(base, adapter=edited(adapter, use_newlora=True))


@pytest.mark.parametrize("key", ["rank_pattern", "alpha_pattern", "r", "lora_alpha"])
@pytest.mark.parametrize("value", [2.5, True, "x", ["(", 1], {"(": 3}, {"q_proj": None}])
def test_a_scale_that_is_none_is_refused_in_one_line(base, plain_adapter, key, value) -> None:
    before = (plain_adapter / "adapter_config.json").read_text()
    try:
        edited(plain_adapter, **{key: value})
        if (key, value) == ("lora_alpha", 2.5):
            assert open_source(base, adapter=plain_adapter).weights()
            return
        with pytest.raises(CheckpointError, match=r"^[^\n]+$"):
            open_source(base, adapter=plain_adapter)
    finally:
        (plain_adapter / "adapter_config.json").write_text(before)


def test_an_adapter_that_lacks_tensors_or_has_others_shapes_is_refused(base, tmp_path) -> None:
    adapter = adapted(base, tmp_path / "adapter")
    path = adapter / "adapter_model.safetensors"
    whole = load_file(path)
    query = f"{ATTENTION}q_proj.lora_"
    halved = {name: t for name, t in whole.items() if name != f"{query}B.weight"}
    without = {name: t for name, t in whole.items() if not name.startswith(query)}
    wide = whole | {f"{query}A.weight": torch.ones(5, 64)}
    narrow = whole | {f"{query}A.weight": torch.ones(4, 32)}
    for tensors, said in (
        (halved, "there is A alone"),
        (without, "no tensors for 'model.layers.0.self_attn.q_proj'"),
        (wide, "its config says rank 4"),
        (narrow, "made for another model"),
    ):
        save_file(tensors, path)
        with pytest.raises(CheckpointError, match=said):
            open_source(base, adapter=adapter).weights()


def test_another_models_adapter_is_refused(base, tmp_path) -> None:
    """Names of which it cannot be told whether they are this layer's."""
    adapter = adapted(base, tmp_path / "adapter")
    path = adapter / "adapter_model.safetensors"
    whole = load_file(path)
    for old, new in (
        (".self_attn.", ".attention."),
        (".model.layers.", ".transformer.h."),
        (".model.layers.", ".model.vision_tower.layers."),
        (ATTENTION, ATTENTION + "inner."),
    ):
        save_file({name.replace(old, new): t for name, t in whole.items()}, path)
        with pytest.raises(CheckpointError, match="Was the adapter made for this model"):
            open_source(base, adapter=adapter)
    mlp = {f"base_model.model.other.fc.lora_{x}.weight": torch.ones(4, 4) for x in "AB"}
    save_file(mlp, path)
    with pytest.raises(CheckpointError, match="another model's"):
        open_source(base, adapter=adapter)


def test_a_model_saved_with_its_adapter_unmerged_says_so(base, tmp_path) -> None:
    """What torch.save or save_file of a PEFT model's state dict leaves."""
    adapter = adapted(base, tmp_path / "adapter", target_modules=["v_proj"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    folder = Path(shutil.copytree(base, tmp_path / "unmerged"))
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    for prefix in ("base_model.model.", ""):
        named = {name.replace("base_model.model.", prefix): t for name, t in state.items()}
        save_file(named, folder / "model.safetensors")
        with pytest.raises(CheckpointError, match=r"^[^\n]*not merged[^\n]*merge_and_unload"):
            open_source(folder)


def test_pickled_adapters_are_refused(base, tmp_path) -> None:
    adapter = adapted(base, tmp_path / "adapter")
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"adapter_model\.bin run code"):
        open_source(base, adapter=adapter)


def test_transformers_reads_an_adapter_beside_a_model(base, tmp_path) -> None:
    """Why one that lies beside is not left out without a word."""
    folder = Path(shutil.copytree(base, tmp_path / "both"))
    for path in adapted(base, tmp_path / "adapter").iterdir():
        shutil.copy(path, folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert any("lora_A" in name for name, _ in loaded.named_parameters())

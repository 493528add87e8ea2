"""Adapters that cannot be merged, or are not what they seem: each refused in one line."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from rope_export.checkpoints import open_model
from rope_export.errors import CheckpointError
from tests.conftest import TINY
from tests.support.peft_adapters import adapted, merged, model_in, peft

ATTENTION = "base_model.model.model.layers.0.self_attn."


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_in(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def plain_adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return adapted(base, tmp_path_factory.mktemp("adapter") / "plain")


@pytest.mark.parametrize("config", [False, True])
def test_an_adapters_folder_alone_says_what_it_is(base, tmp_path, config) -> None:
    folder = adapted(base, tmp_path / "adapter")
    if config:  # some trainers save the model's config beside it
        shutil.copy(base / "config.json", folder)
    for asked in (None, folder) if config else (None,):
        with pytest.raises(CheckpointError, match=r"^[^\n]*as SOURCE[^\n]*`adapter`\.$") as error:
            open_model(folder, adapter=asked).layer()
    assert config or str(base) in str(error.value)


def test_a_folder_that_is_no_adapter_is_refused(base, tmp_path) -> None:
    for wrong in (base, tmp_path / "gone"):
        with pytest.raises(CheckpointError, match=r"no adapter|no such folder"):
            open_model(base, adapter=wrong).layer()
    config = tmp_path / "config.json"
    config.write_text(json.dumps(TINY))
    with pytest.raises(CheckpointError, match="as SOURCE"):
        open_model(config, adapter=base).layer()


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
        open_model(base, adapter=adapter).layer()


def edited(adapter: Path, **changes: Any) -> Path:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return adapter


def test_a_key_that_nobody_knows_of_is_refused_where_it_is_set(base, tmp_path) -> None:
    adapter = edited(adapted(base, tmp_path / "adapter"), use_newlora=None)
    open_model(base, adapter=adapter).layer()
    with pytest.raises(CheckpointError, match="use_newlora=True"):
        open_model(base, adapter=edited(adapter, use_newlora=True)).layer()


@pytest.mark.parametrize("key", ["rank_pattern", "alpha_pattern", "r", "lora_alpha"])
@pytest.mark.parametrize("value", [2.5, True, "x", ["(", 1], {"(": 3}, {"q_proj": None}])
def test_a_scale_that_is_none_is_refused_in_one_line(base, plain_adapter, key, value) -> None:
    before = (plain_adapter / "adapter_config.json").read_text()
    try:
        edited(plain_adapter, **{key: value})
        if (key, value) == ("lora_alpha", 2.5):
            assert open_model(base, adapter=plain_adapter).layer().weights()
            return
        with pytest.raises(CheckpointError, match=r"^[^\n]+$"):
            open_model(base, adapter=plain_adapter).layer()
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
            open_model(base, adapter=adapter).layer().weights()


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
            open_model(base, adapter=adapter).layer()
    mlp = {f"base_model.model.other.fc.lora_{x}.weight": torch.ones(4, 4) for x in "AB"}
    save_file(mlp, path)
    with pytest.raises(CheckpointError, match="another model's"):
        open_model(base, adapter=adapter).layer()


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
            open_model(folder).layer()


def test_pickled_adapters_are_refused(base, tmp_path) -> None:
    adapter = adapted(base, tmp_path / "adapter")
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"adapter_model\.bin run code"):
        open_model(base, adapter=adapter).layer()


def test_any_tensor_of_a_model_has_what_the_adapter_adds(base: Path, plain_adapter: Path) -> None:
    """As PEFT merges it; those that it leaves alone are the file's own."""
    model, plain = open_model(base, adapter=plain_adapter), open_model(base)
    name = "model.layers.1.self_attn.q_proj.weight"
    assert torch.equal(model.tensor(name), merged(base, plain_adapter, layer=1)["q_proj.weight"])
    for other in (*model.shared, *model.beside(0)):
        assert torch.equal(model.tensor(other), plain.tensor(other))

"""Which of a folder's weight files counts: the one that transformers loads."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from rope_export import export, verify
from rope_export.checkpoints import open_model
from rope_export.cli import run
from rope_export.errors import CheckpointError
from tests.conftest import TINY

SMALL = {**TINY, "vocab_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
Q = "model.layers.0.self_attn.q_proj.weight"


def model(seed: int) -> LlamaForCausalLM:
    """A tiny model whose weights follow the seed."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**SMALL))


def saved(folder: Path, seed: int, **options: Any) -> Path:
    model(seed).save_pretrained(folder, **options)
    return folder


def both(folder: Path, whole: int, shards: int) -> Path:
    """A whole file with one seed's weights beside shards and their index with another's."""
    saved(folder, shards, max_shard_size="20KB")
    saved(folder.with_name("whole"), whole)
    shutil.copy(folder.with_name("whole") / "model.safetensors", folder)
    return folder


def queries(loaded: Any) -> torch.Tensor:
    """Layer 0's query projection as transformers loaded it."""
    base = getattr(loaded, "model", loaded)
    return base.layers[0].self_attn.q_proj.weight.detach()


def is_as_transformers(folder: Path) -> bool:
    ours = open_model(folder).layer().weights()["q_proj.weight"]
    return torch.equal(ours, queries(AutoModelForCausalLM.from_pretrained(folder)))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.usefixtures("short_prompts")
def test_a_whole_file_counts_before_the_index_beside_it(tmp_path: Path, capsys) -> None:
    """Fine-tuned weights saved whole into the folder that held the old model's shards."""
    folder = both(tmp_path / "both", whole=1, shards=0)
    assert is_as_transformers(folder)
    ours = open_model(folder).layer()
    assert torch.equal(ours.weights()["q_proj.weight"], queries(model(1)))
    out = tmp_path / "layer"
    assert run(["export", str(folder), "--out", str(out)]) == 0
    output = capsys.readouterr()
    assert "weights proven" in output.out
    facts = json.loads((out / "manifest.json").read_text())["source"]
    assert facts["files"] == ["model.safetensors"]
    (note,) = facts["notes"]
    assert "model.safetensors.index.json" in note
    assert f"note: {note}" in output.err
    assert str(tmp_path) not in json.dumps(facts)


def test_a_stale_index_beside_a_whole_file_is_not_read(tmp_path: Path) -> None:
    folder = saved(tmp_path / "stale", 1)
    index = {"metadata": {}, "weight_map": {"gone": "model-00001-of-00009.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert is_as_transformers(folder)


def test_quantized_weights_beside_the_shards_that_the_config_is_about(tmp_path: Path) -> None:
    """MLX's 4 bits in model.safetensors: what transformers opens too, and cannot load."""
    folder = sharded(tmp_path)[0]
    packed = {}
    for module in (Q.replace("q_proj.weight", f"{x}_proj.") for x in "qkvo"):
        packed[f"{module}weight"] = torch.ones(64, 8, dtype=torch.uint32)
        packed |= {module + kind: torch.ones(64, 1) for kind in ("scales", "biases")}
    save_file(packed, folder / "model.safetensors", {"format": "mlx"})
    with pytest.raises(CheckpointError, match=r"^[^\n]*self_attn\.[^\n]*$"):
        open_model(folder).layer().weights()


def test_pickled_weights_beside_safetensors_are_told_of(tmp_path: Path) -> None:
    """They may be the newer ones; transformers opens the others."""
    folder = saved(tmp_path / "model", 0)
    torch.save(model(1).state_dict(), folder / "pytorch_model.bin")
    assert is_as_transformers(folder)
    assert any("pytorch_model.bin" in note for note in open_model(folder).layer().notes)


@pytest.mark.parametrize("named", ["new/model.safetensors", "new/model.safetensors.index.json"])
def test_the_config_may_name_the_file_that_counts(tmp_path: Path, named: str) -> None:
    """Shards of a named index are looked for in the checkpoint's folder, not beside the index."""
    folder = saved(tmp_path / "model", 0)
    new = saved(folder / "new", 1, **({"max_shard_size": "20KB"} if "index" in named else {}))
    if "index" in named:
        for shard in new.glob("*.safetensors"):
            shard.rename(folder / shard.name)
    edit(folder / "config.json", transformers_weights=named)
    assert is_as_transformers(folder)
    source = open_model(folder).layer()
    assert torch.equal(source.weights()["q_proj.weight"], queries(model(1)))
    assert source.facts["files"][0] == named


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("../other.safetensors", "own folder"),
        ("gone.safetensors", "no such file"),
        ("pytorch_model.bin", r"\.safetensors file"),
        (7, r"\.safetensors file"),
    ],
)
def test_a_config_that_names_another_kind_of_file_is_refused(
    tmp_path: Path, named: Any, said: str
) -> None:
    folder = saved(tmp_path / "model", 0)
    edit(folder / "config.json", transformers_weights=named)
    with pytest.raises((OSError, ValueError, AttributeError)):
        AutoModelForCausalLM.from_pretrained(folder)
    with pytest.raises(CheckpointError, match=f"^config key transformers_weights=.*{said}.*$"):
        open_model(folder).layer()


def sharded(folder: Path) -> tuple[Path, dict[str, Any], Path]:
    """A checkpoint of several shards, its index, and the path to that."""
    saved(folder, 0, max_shard_size="60KB")
    path = folder / "model.safetensors.index.json"
    return folder, json.loads(path.read_text()), path


def test_of_a_tensor_in_two_shards_the_last_counts(tmp_path: Path) -> None:
    """transformers reads shards whole, in the order of their names; the index is not looked at."""
    folder, index, _ = sharded(tmp_path)
    last = sorted(folder.glob("*.safetensors"))[-1]
    assert index["weight_map"][Q] != last.name
    save_file(load_file(last) | {Q: torch.full((64, 64), 0.5)}, last, {"format": "pt"})
    assert is_as_transformers(folder)
    source = open_model(folder).layer()
    assert bool((source.weights()["q_proj.weight"] == 0.5).all())
    assert any(last.name in note and Q in note for note in source.notes)


def test_a_tensor_that_the_index_forgot_is_read_from_its_shard(tmp_path: Path) -> None:
    folder, index, path = sharded(tmp_path)
    shard = index["weight_map"].pop(Q)
    assert shard in index["weight_map"].values()
    path.write_text(json.dumps(index))
    assert is_as_transformers(folder)
    assert any("does not name it" in note for note in open_model(folder).layer().notes)


def test_a_tensor_in_another_shard_than_the_index_says(tmp_path: Path) -> None:
    folder, index, path = sharded(tmp_path)
    others = sorted(set(index["weight_map"].values()) - {index["weight_map"][Q]})
    index["weight_map"][Q] = others[0]
    path.write_text(json.dumps(index))
    assert is_as_transformers(folder)


@pytest.mark.parametrize("missing", ["file", "tensor"])
def test_what_the_index_promises_and_is_not_there_is_named(tmp_path: Path, missing: str) -> None:
    folder, index, _ = sharded(tmp_path)
    shard = folder / index["weight_map"][Q]
    if missing == "file":
        shard.unlink()
    else:
        save_file({k: v for k, v in load_file(shard).items() if k != Q}, shard, {"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"^[^\n]*{shard.name}[^\n]*$"):
        open_model(folder).layer().weights()


def test_an_index_of_other_shards_than_there_are_names_the_first(tmp_path: Path) -> None:
    folder, _, path = sharded(tmp_path)
    count = len(list(folder.glob("*.safetensors")))
    path.write_text(path.read_text().replace(f"-of-{count:05}", f"-of-{2 * count:05}"))
    with pytest.raises(OSError, match="No such file"):
        AutoModelForCausalLM.from_pretrained(folder)
    with pytest.raises(CheckpointError, match=rf"^[^\n]*-of-{2 * count:05}[^\n]*missing[^\n]*$"):
        open_model(folder).layer().weights()


def test_a_folder_without_a_config_says_what_may_be_meant(tmp_path: Path) -> None:
    saved(tmp_path / "checkpoint-500", 0)
    with pytest.raises(CheckpointError, match=r"but in checkpoint-500\. Give that folder"):
        open_model(tmp_path).layer()
    (tmp_path / "model.gguf").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"Give model\.gguf itself as SOURCE"):
        open_model(tmp_path).layer()


LYING = {
    "model.fp16.safetensors": "transformers_weights",
    "consolidated.safetensors": "transformers_weights",
    "model-00001-of-00002.safetensors": "no model.safetensors.index.json",
    "pytorch_model.bin": "run code",
    "pytorch_model-00001-of-00002.bin": "run code",
    "model.gguf": "Give that file itself",
    "tf_model.h5": "save_pretrained",
    "model.onnx": "save_pretrained",
    "shard-00000-model-00001-of-00002.safetensors": "distributed checkpoint",
}


@pytest.mark.parametrize("name", LYING)
def test_weights_under_another_name_say_what_they_are(tmp_path: Path, name: str) -> None:
    folder = saved(tmp_path / "model", 0)
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(CheckpointError, match=rf"^[^\n]*{name}[^\n]*{LYING[name]}[^\n]*$"):
        open_model(folder).layer()


def test_a_variant_file_is_read_once_the_config_names_it(tmp_path: Path) -> None:
    """The way out that the refusal names leads to the same weights in transformers."""
    folder = saved(tmp_path / "model", 0)
    (folder / "model.safetensors").rename(folder / "model.fp16.safetensors")
    edit(folder / "config.json", transformers_weights="model.fp16.safetensors")
    assert is_as_transformers(folder)


@pytest.mark.usefixtures("short_prompts")
def test_the_hubs_cache_of_links_is_a_source(tmp_path: Path) -> None:
    """A snapshot folder whose files are links into blobs, as the hub's client leaves them."""
    plain = saved(tmp_path / "plain", 0, max_shard_size="20KB")
    home = tmp_path / "hub" / "models--owner--name"
    snapshot = home / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (home / "blobs").mkdir()
    for at, path in enumerate(sorted(plain.iterdir())):
        shutil.copy(path, home / "blobs" / f"{at:040x}")
        (snapshot / path.name).symlink_to(f"../../blobs/{at:040x}")
    assert is_as_transformers(snapshot)
    artifact = export(snapshot, out=tmp_path / "layer", cache="none")
    assert verify(artifact).weights == "proven"
    with pytest.raises(CheckpointError, match=rf"but in snapshots/{'0' * 40}\. Give that folder"):
        open_model(home).layer()
    (tmp_path / "link").symlink_to(snapshot)
    assert open_model(tmp_path / "link").layer().weights()


def test_a_base_model_saved_without_its_head_has_no_prefix(tmp_path: Path) -> None:
    whole = saved(tmp_path / "whole", 0)
    AutoModel.from_pretrained(whole).save_pretrained(tmp_path / "base")
    assert Q.removeprefix("model.") in load_file(tmp_path / "base" / "model.safetensors")
    assert is_as_transformers(tmp_path / "base")

"""Configs and checkpoints: what is read, how little of it, and what is refused by its name."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rope_export import AttentionSpec, RopeExportError
from rope_export.checkpoints import open_model
from rope_export.checkpoints.config import select, spec_of
from rope_export.checkpoints.drawn import drawn_weights
from rope_export.errors import CheckpointError, SpecError
from tests.conftest import TINY

MODELS = sorted((Path(__file__).parents[2] / "models").glob("*.json"))


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """Two layers, each in a shard of its own."""
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    shapes, files = AttentionSpec.from_hf(TINY).weight_shapes, {}
    for layer in range(2):
        names = {f"model.layers.{layer}.self_attn.{n}": shape for n, shape in shapes.items()}
        shard = f"model-{layer}.safetensors"
        save_file({n: torch.full(s, layer + 0.5) for n, s in names.items()}, tmp_path / shard)
        files |= dict.fromkeys(names, shard)
    index = {"metadata": {}, "weight_map": files}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    return tmp_path


def test_a_layer_is_read_without_the_shards_of_others(sharded) -> None:
    (sharded / "model-0.safetensors").unlink()
    weights = open_model(sharded).layer(1).weights()
    assert all(torch.all(w == 1.5) for w in weights.values())
    with pytest.raises(CheckpointError, match=r"model-0\.safetensors"):
        open_model(sharded).layer(0).weights()


def test_an_index_may_not_point_elsewhere(sharded) -> None:
    path = sharded / "model.safetensors.index.json"
    path.write_text(path.read_text().replace("model-1.", "../model-1."))
    with pytest.raises(CheckpointError, match=r"\.\./model-1"):
        open_model(sharded).layer()


def test_pickles_are_refused_with_the_reason(tmp_path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin.*run code"):
        open_model(tmp_path).layer()


def one_file(folder: Path, **extra: torch.Tensor) -> Path:
    (folder / "config.json").write_text(json.dumps(TINY))
    shapes = AttentionSpec.from_hf(TINY).weight_shapes
    tensors = {f"model.layers.0.self_attn.{n}": torch.ones(s) for n, s in shapes.items()}
    save_file({**tensors, **extra}, folder / "model.safetensors")
    return folder


def test_a_bias_that_the_config_does_not_name_is_refused(tmp_path) -> None:
    bias = {"model.layers.0.self_attn.q_proj.bias": torch.ones(64)}
    with pytest.raises(CheckpointError, match=r"q_proj\.bias"):
        open_model(one_file(tmp_path, **bias)).layer()


def test_values_beyond_float16_are_refused(tmp_path) -> None:
    large = {"model.layers.0.self_attn.o_proj.weight": torch.full((64, 64), 1e5)}
    folder = one_file(tmp_path, **large)
    with pytest.raises(CheckpointError, match=r"o_proj\.weight.*float16"):
        open_model(folder, dtype="float16").layer().weights()
    assert open_model(folder, dtype="bfloat16").layer().weights()


def test_quantized_tensors_are_refused(tmp_path) -> None:
    whole = {"model.layers.0.self_attn.o_proj.weight": torch.ones(64, 64, dtype=torch.int8)}
    with pytest.raises(CheckpointError, match="int8"):
        open_model(one_file(tmp_path, **whole)).layer().weights()


REFUSED = {
    "model_type": "gpt5",
    "rope_parameters": {"rope_type": "spiral"},
    "rope_scaling": {"type": "spiral", "factor": 4.0},
    "sliding_window": 4_096,
    "attn_logit_softcapping": 50.0,
    "use_qk_norm": True,
    "query_pre_attn_scalar": 256,
    "layer_types": ["sliding_attention", "full_attention"],
    "num_key_value_heads": 3,
    "num_hidden_layers": 0,
    "hidden_size": "64",
    "partial_rotary_factor": 0.45,
}


@pytest.mark.parametrize("key", REFUSED)
def test_a_feature_that_is_not_there_is_refused_by_name(key) -> None:
    config = {k: v for k, v in TINY.items() if not (key == "rope_scaling" and "rope" in k)}
    with pytest.raises(SpecError) as error:
        AttentionSpec.from_hf({**config, key: REFUSED[key]})
    names = {"num_key_value_heads": "kv_heads"}
    names |= {"rope_parameters": "rope_type", "rope_scaling": "rope_type"}
    assert names.get(key, key) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_default_of_the_family_counts_where_the_file_is_silent() -> None:
    """Mistral without the key has a window of 4096; with null it has none."""
    assert AttentionSpec.from_hf({**TINY, "model_type": "mistral"}).window == 4096
    null = {**TINY, "model_type": "mistral", "sliding_window": None}
    assert AttentionSpec.from_hf(null).window is None


def test_the_older_spelling_means_the_same() -> None:
    old = {k: v for k, v in TINY.items() if k != "rope_parameters"}
    scaling = {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 4.0}}
    new = {"rope_parameters": {"rope_type": "linear", "rope_theta": 5e5, "factor": 4.0}}
    assert AttentionSpec.from_hf({**old, **scaling}) == AttentionSpec.from_hf({**old, **new})


@pytest.mark.parametrize("path", MODELS, ids=lambda p: p.stem)
def test_a_published_config_is_read_or_refused_in_one_line(path) -> None:
    """Each layer; docs/models.md says which are refused."""
    read = select(path)
    specs, lines = 0, []
    for layer in range(read.facts.whole("num_hidden_layers")):
        try:
            spec = spec_of(read, layer)
        except SpecError as error:
            lines.append(str(error))
        else:
            specs += 1
            assert AttentionSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    assert all(re.fullmatch(r"[^\n]+", line) for line in lines)
    page = (path.parents[1] / "docs" / "models.md").read_text(encoding="utf-8")
    assert (f"| `{path.stem}` |" in page.partition("## Refused")[0]) == bool(specs)


def test_drawn_weights_follow_the_seed_and_the_layer() -> None:
    spec = AttentionSpec.from_hf(TINY)
    first, again = drawn_weights(spec, 1), drawn_weights(spec, 1)
    for name, tensor in first.items():
        assert torch.equal(tensor, again[name])
        assert not torch.equal(tensor, drawn_weights(spec, 2)[name])
        assert not torch.equal(tensor, drawn_weights(spec, 1, layer=1)[name])


def test_a_hub_id_reads_the_hub_cache(sharded, tmp_path, monkeypatch) -> None:
    """A cache laid out as the hub's own client leaves it, with no network."""
    commit = "0" * 40
    home = tmp_path / "hub" / "models--owner--name"
    snapshot = home / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(commit)
    for path in sharded.glob("*.*"):
        if path.is_file():
            (snapshot / path.name).write_bytes(path.read_bytes())
    constants = pytest.importorskip("huggingface_hub.constants", reason="needs the extra [hf]")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    weights = open_model("owner/name").layer(1).weights()
    assert all(torch.all(w == 1.5) for w in weights.values())
    with pytest.raises(RopeExportError, match="owner/other"):
        open_model("owner/other").layer()

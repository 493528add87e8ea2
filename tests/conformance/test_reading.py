"""The second truth: transformers' own module, built by its own code from the same files.

Our readers are made wrong here, one at a time, and the reading must fail each time.
"""

import dataclasses
import json
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rope_export import AttentionSpec, verify
from rope_export.checkpoints import families, keys, open_model
from rope_export.checkpoints.gguf import GgufFile
from rope_export.cli import run
from rope_export.errors import SpecError
from rope_export.parity.layer import reading as reading_sources
from rope_export.parity.layer.reading import ask_transformers
from rope_export.reading import Reading, config_reads
from rope_export.reading.calls import Calls
from rope_export.spec import NormSpec
from tests.conformance.models import reduced
from tests.support.quantized_files import awq
from tests.unit.test_gguf import ARCHITECTURES, written

pytest.importorskip("transformers")

MODELS = Path(__file__).parents[2] / "models"
SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "head_dim": 16,
    "vocab_size": 64,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}


def config_file(folder: Path, model_type: str, **keys: Any) -> Path:
    file = folder / f"{model_type}.json"
    facts = {**SMALL, "model_type": model_type, **keys}
    file.write_text(json.dumps({k: v for k, v in facts.items() if v is not None}))
    return file


def read_twice(source: Path, layer: int = 0) -> Reading:
    """Our reading of the source, as it is now, against transformers'."""
    spec = AttentionSpec.from_hf(source, layer=layer)
    return ask_transformers(spec, {"layer": layer, "seed": 0}, str(source))


def wrongly(monkeypatch: pytest.MonkeyPatch, model_type: str, **changes: Any) -> None:
    """Makes our reader of one family another."""
    known = families.every_family()
    known[model_type] = dataclasses.replace(known[model_type], **changes)
    monkeypatch.setattr(families.known, "every_family", lambda: known)


def without(model_type: str, *keys: str, **facts: Any) -> Callable[..., families.Facts]:
    """The family's reader as it was, but blind to some keys, with these facts in place."""
    right = families.every_family()[model_type].attention

    def attention(config: families.Config, layer: int) -> families.Facts:
        seen = set(config.read)
        found = right(config, layer) | facts
        config.read.intersection_update(seen | (config.read - set(keys)))
        return found

    return attention


def test_recorder_sees_what_llamas_attention_reads() -> None:
    reads = config_reads(MODELS / "llama-3.1-8b.json")
    assert {"hidden_size", "num_attention_heads", "num_key_value_heads", "attention_bias"} <= reads
    assert {"rope_parameters", "is_causal"} <= reads
    assert reads.isdisjoint({"mlp_bias", "intermediate_size", "vocab_size", "hidden_act"})


def test_recorder_follows_a_key_under_another_name() -> None:
    reads = config_reads(MODELS / "gpt-j-6b.json")
    assert {"n_embd", "n_head", "rotary_dim"} <= reads


@pytest.mark.parametrize("layer", [0, 29])
def test_real_weights_are_proven(smollm2: Path, layer: int) -> None:
    found = read_twice(smollm2, layer)
    assert (found.status, found.reason, found.differences) == ("proven", None, ())
    assert found.against is not None
    assert found.against.startswith("transformers 5.")


@pytest.mark.parametrize(
    ("model_type", "layer", "keys"),
    [
        ("llama", 1, {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}),
        ("qwen3", 0, {"rms_norm_eps": 1e-5}),
        ("gemma2", 0, {"sliding_window": 20, "attn_logit_softcapping": 2.0}),
        ("mistral", 0, {"sliding_window": 12}),
        ("falcon", 0, {"head_dim": None, "new_decoder_architecture": True, "bias": True}),
    ],
)
def test_configs_are_proven(
    tmp_path: Path, model_type: str, layer: int, keys: dict[str, Any]
) -> None:
    found = read_twice(config_file(tmp_path, model_type, **keys), layer)
    assert found.status == "proven", found.lines()
    assert found.reason is not None
    assert "config" in found.reason


def test_an_ignored_key_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = config_file(tmp_path, "gemma2", attn_logit_softcapping=0.5)
    blind = without("gemma2", "attn_logit_softcapping", softcap=None)
    ignored = frozenset({"attn_logit_softcapping"})
    wrongly(monkeypatch, "gemma2", attention=blind, ignored=ignored)
    found = read_twice(source)
    assert found.status == "failed"
    assert found.differences[0].case == "short"
    assert "attn_logit_softcapping" in found.differences[0].keys


def test_a_wrong_default_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = config_file(tmp_path, "llama")
    wrongly(monkeypatch, "llama", rope=lambda config, layer: {"rope_theta": 20_000.0})
    found = read_twice(source)
    assert found.status == "failed"
    assert {x.case for x in found.differences} >= {"short", "beyond position 128"}


def test_a_wrong_kind_of_layer_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = config_file(tmp_path, "mistral", sliding_window=40)
    wrongly(monkeypatch, "mistral", kinds=lambda config: ["full_attention"] * 2)
    found = read_twice(source)
    assert [x.case for x in found.differences] == ["window 40 exceeded"]
    assert found.differences[0].error > 1e-3


def test_a_wrong_norm_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = config_file(tmp_path, "qwen3")
    norm = NormSpec(eps=1e-6, kind="layer")
    attention = without("qwen3", q_norm=norm, k_norm=norm)
    wrongly(monkeypatch, "qwen3", attention=attention)
    found = read_twice(source)
    assert found.status == "failed", found.lines()
    assert found.differences[0].case == "short"


def test_a_wrong_scale_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = config_file(tmp_path, "granite", attention_multiplier=0.7)
    attention = without("granite", "attention_multiplier", scale=None)
    ignored = frozenset({"attention_multiplier"})
    wrongly(monkeypatch, "granite", attention=attention, ignored=ignored)
    found = read_twice(source)
    assert found.status == "failed", found.lines()
    assert found.differences[0].case == "short"
    assert "attention_multiplier" in found.differences[0].keys


def two_files(smollm2: Path, folder: Path) -> Path:
    """One layer of SmolLM2, and beside it a shard of other weights with its index."""
    (folder / "config.json").write_bytes((smollm2 / "config.json").read_bytes())
    tensors = load_file(smollm2 / "model.safetensors")
    layer = {name: x for name, x in tensors.items() if ".layers.0.self_attn." in name}
    save_file(layer, folder / "model.safetensors", {"format": "pt"})
    shard = "model-00001-of-00001.safetensors"
    save_file({name: 2 * x for name, x in layer.items()}, folder / shard, {"format": "pt"})
    index = {"weight_map": dict.fromkeys(layer, shard)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_a_wrong_file_fails(smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = two_files(smollm2, tmp_path)
    assert read_twice(source).status == "proven"
    from rope_export.checkpoints import checkpoint, files

    def sharded(locator: Any, config: Any) -> files.WeightFiles:
        index = json.loads((source / files.INDEX).read_text())["weight_map"]
        return files.WeightFiles(chosen=files.INDEX, tensors=index, index=index)

    monkeypatch.setattr(checkpoint, "weight_files", sharded)
    found = read_twice(source)
    assert found.status == "failed", found.lines()
    assert found.differences[0].case == "short"


def test_a_tensor_that_transformers_does_not_know_fails(
    smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = two_files(smollm2, tmp_path)
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(576)
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    wrongly(monkeypatch, "llama", attention=lambda config, layer: {"q_bias": True})
    found = read_twice(source)
    assert (found.status, found.differences[0].case) == ("failed", "weights")
    assert found.differences[0].output == "model.layers.0.self_attn.q_proj.bias"


@pytest.mark.usefixtures("short_prompts")
def test_a_failed_reading_fails_the_verification(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = config_file(tmp_path, "granite", attention_multiplier=0.7)
    out = tmp_path / "artifact"
    with monkeypatch.context() as wrong:
        wrongly(wrong, "granite", attention=without("granite", scale=0.35))
        assert run(["export", str(source), "--out", str(out), "--cache", "none"]) == 1
    printed = capsys.readouterr().out
    assert "reading failed against transformers" in printed
    assert "reading differs on short, attention_output" in printed
    report = verify(out)
    assert (report.status, report.reading.status) == ("failed", "failed")
    assert {row.status for row in report.rows} == {"passed"}
    kept = json.loads((out / "evidence.json").read_text())["parity"]
    assert kept["reading"] == report.to_json()["reading"]
    assert kept["status"] == "failed"


@pytest.mark.usefixtures("short_prompts")
def test_without_transformers_it_is_unproven_and_may_be_required(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = config_file(tmp_path, "llama"), tmp_path / "artifact"
    assert run(["export", str(source), "--out", str(out), "--cache", "none", "--no-verify"]) == 0
    assert run(["verify", str(out), "--require", "reading"]) == 0
    monkeypatch.setattr(reading_sources, "installed", lambda: None)
    capsys.readouterr()
    assert run(["verify", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["reading"]
    assert (found["status"], found["against"]) == ("unproven", None)
    assert "rope_export[hf]" in found["reason"]
    assert run(["verify", str(out), "--json", "--require", "reading"]) == 3
    streams = capsys.readouterr()
    assert json.loads(streams.out)["status"] == "passed"
    assert "--require reading: it is unproven (transformers is not installed" in streams.err
    assert run(["verify", str(out), "--require", "writing"]) == 2


def test_code_that_lies_in_a_folder_is_never_run(smollm2: Path, tmp_path: Path) -> None:
    source = two_files(smollm2, tmp_path)
    facts = json.loads((source / "config.json").read_text())
    facts["model_type"] = "unheard_of"
    facts["auto_map"] = {
        "AutoConfig": "brought_along.Config",
        "AutoModelForCausalLM": "brought_along.Model",
    }
    (source / "brought_along.py").write_text("raise SystemExit('it was run')")
    spec = AttentionSpec.from_hf(smollm2)
    (source / "config.json").write_text(json.dumps(facts))
    found = ask_transformers(spec, {"layer": 0}, str(source))
    assert found.status == "unproven"
    assert "brought_along" not in sys.modules


@pytest.mark.long
@pytest.mark.parametrize("path", sorted(MODELS.glob("*.json")), ids=lambda p: p.stem)
def test_published_configs_are_proven(path: Path, tmp_path: Path) -> None:
    config = json.loads(path.read_text())
    with suppress(KeyError, SpecError):
        config = reduced(config)
    source = tmp_path / path.name
    source.write_text(json.dumps(config))
    done = set()
    for layer in range(6):
        try:
            spec = AttentionSpec.from_hf(source, layer=layer)
        except SpecError:
            continue  # refused, with its reason, in docs/models.md
        if spec not in done:
            done.add(spec)
            found = ask_transformers(spec, {"layer": layer, "seed": 0}, str(source))
            assert found.status == "proven", found.lines()


def test_a_key_that_only_transformers_reads_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = config_file(tmp_path, "granite", attention_multiplier=0.65)
    read = families.Config.__getitem__

    def blind(self: families.Config, key: str) -> Any:
        found = read(self, key)
        self.read.discard("attention_multiplier")
        return found

    monkeypatch.setattr(families.Config, "__getitem__", blind)
    monkeypatch.setattr(keys, "refuse_unread", lambda facts, kind: None)
    assert run(["export", str(source), "--out", str(tmp_path / "artifact")]) == 2
    assert "config key attention_multiplier=0.65 is not supported" in capsys.readouterr().err
    assert not (tmp_path / "artifact").exists()


def read_source_twice(path: Path, layer: int = 0) -> Reading:
    source = open_model(path).layer(layer)
    return ask_transformers(source.spec, source.facts, str(path))


@pytest.mark.parametrize("arch", ["llama", "gemma2"])
def test_gguf_weights_are_read_by_transformers_own_loader(
    tmp_path: Path, arch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "tiny.gguf"
    written(file, arch, "Q8_0", **ARCHITECTURES[arch])
    found = read_source_twice(file, layer=1)
    assert found.status == "proven", found.lines()
    assert found.reason == "of the weights; the file's facts as rope_export reads them"
    read = GgufFile.read
    monkeypatch.setattr(GgufFile, "read", lambda self, name: 1.01 * read(self, name))
    assert read_source_twice(file, layer=1).status == "failed"


def test_quantized_weights_are_proven_of_the_config_alone(tmp_path: Path) -> None:
    found = read_source_twice(awq().save(tmp_path / "awq"))
    assert found.status == "proven", found.lines()
    assert found.reason == "of the config; weights not read by transformers"


def test_calls_count_positions_from_the_first_slot() -> None:
    calls = Calls(steps=(("prompt", 3), ("token", 1)), past=2)
    assert calls.positions(1).tolist() == [[0, 1, 2, 3, 4, 5]]
    assert Calls(steps=(("prompt", 3),), start=7).positions(1).tolist() == [[7, 8, 9]]

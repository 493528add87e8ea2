"""Whole decoders: sound artifacts pass, and what is planted in one layer is found and named."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from onnx import helper, numpy_helper

from rope_export import export_decoder, verify
from rope_export.artifacts.decoder import DecoderArtifact
from rope_export.errors import ArtifactError, InputError, ProfileError
from rope_export.parity.decoder import prompts, theirs
from rope_export.parity.decoder.cases import regular_texts
from rope_export.parity.decoder.exact import Float64, active_mode
from rope_export.parity.report.result import Report
from rope_export.parity.subjects import decoder as subject
from rope_export.sessions import Session
from tests.conformance.faults.layers import layer
from tests.support.planted_decoder import (
    Change,
    permuted,
    planted,
    scaled,
    through,
    with_attribute,
    without_padding,
)

transformers = pytest.importorskip("transformers")

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 64,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def checkpoint(folder: Path, config) -> Path:
    """A model with weights that give outputs of about 1, saved by transformers."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, parameter.shape[-1] ** -0.5)
            else:
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> DecoderArtifact:
    folder = tmp_path_factory.mktemp("decoders")
    source = checkpoint(folder / "llama", transformers.LlamaConfig(**SMALL))
    return export_decoder(source, out=folder / "out", lowering="standard", cache="growing")


@pytest.fixture
def briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three texts and a few tokens of greedy text, for artifacts that are to fail."""
    names = ("short", "decode", "left padding")

    def few(*args):
        return [text for text in regular_texts(*args) if text.name in names]

    monkeypatch.setattr(subject, "regular_texts", few)
    monkeypatch.setattr(prompts, "TOKENS", 2)


def test_a_sound_decoder_passes(llama):
    report = verify(llama, runtimes=["onnxruntime"])
    assert report.status == "passed"
    assert not report.problems
    assert not report.left_out
    assert (report.weights, report.reading.status) == ("proven", "proven")
    outputs = {row.output for row in report.rows if row.runtime == "onnxruntime"}
    layers = {f"layers.{at}/hidden_states" for at in (1, 2, 3)}
    caches = {f"present.{at}.{name}" for at in range(3) for name in ("key", "value")}
    assert outputs == {"logits", "text"} | layers | caches
    cases = {row.case.partition(",")[0] for row in report.rows}
    assert cases > {"short", "decode", "chunk", "left padding", "large hidden states", "greedy"}


MLP = "model.layers.1.mlp.down_proj.weight"
ROLLED = (
    helper.make_node("Slice", ["past_key_values.1.key", "r0", "r1", "r2"], ["rolled0"]),
    helper.make_node("Slice", ["past_key_values.1.key", "r1", "r3", "r2"], ["rolled1"]),
    helper.make_node("Concat", ["rolled1", "rolled0"], ["planted"], axis=2),
)
CONSTANTS = tuple(
    helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.array([value])))
    for name, value in (("r0", 0), ("r1", 1), ("r2", 2), ("r3", 2**31))
)

FAULTS: dict[str, tuple[Change, int | None, str]] = {
    "one weight of one layer": (scaled(MLP, 1.01, (7, 3)), 1, "layers.2/hidden_states"),
    "heads in another order": (
        permuted("model.layers.2.self_attn.o_proj.weight", [1, 0, 2, 3], 0),
        2,
        "layers.3/hidden_states",
    ),
    "keys of two heads exchanged": (
        permuted("model.layers.1.self_attn.k_proj.weight", [1, 0], 1),
        1,
        "present.1.key",
    ),
    "norm weights": (scaled("model.layers.1.input_layernorm.weight", 1.0001), 1, "present.1"),
    "epsilon": (with_attribute("layers.1/hidden_states", "epsilon", 1e-4), 1, "present.1"),
    "cache misplaced": (
        through("past_key_values.1.key", *CONSTANTS, *ROLLED),
        1,
        "layers.2/hidden_states",
    ),
    "no mask": (without_padding(), 0, "layers.1/hidden_states"),
    "head": (scaled("lm_head.weight", 1.001, (slice(None), 5)), None, "lm_head is outside"),
    "last norm": (scaled("model.norm.weight", 1.001, (3,)), None, "model.norm is outside"),
    "embedding": (scaled("model.embed_tokens.weight", 1.001), None, "model.embed_tokens is"),
}


FIRST = {
    "one weight of one layer": ("layers.1.mlp.down_proj", "all of it is in channel 3"),
    "heads in another order": ("layers.2.self_attn.o_proj", "heads 0 and 1 for each other"),
    "keys of two heads exchanged": ("layers.1.self_attn.k_proj", "those of 1, 0"),
    "norm weights": ("layers.1.input_layernorm", "1.0001 times"),
    "epsilon": ("layers.1.input_layernorm", "another epsilon"),
    "cache misplaced": ("present.1.key", "layers.1/self_attn.k_rotated"),
    "no mask": ("layers.0.self_attn.mask", "the mask is ignored"),
    "head": ("lm_head", "the logit of token 5 is wrong: it is 1.001 times"),
    "last norm": ("model.norm", "channels have other scales"),
    "embedding": ("model.embed_tokens", "1.001 times"),
}
"""The tensor that is wrong first, and what is said of it."""

DEFAULT = {"one weight of one layer", "cache misplaced", "no mask", "epsilon", "head"}


@pytest.mark.usefixtures("briefly")
@pytest.mark.parametrize(
    "name",
    [name if name in DEFAULT else pytest.param(name, marks=pytest.mark.long) for name in FAULTS],
)
def test_a_planted_fault_is_found_and_its_layer_named(llama, tmp_path, name):
    change, layer, where = FAULTS[name]
    report = verify(planted(llama, tmp_path / "out", change), runtimes=["onnxruntime"])
    assert report.status == "failed"
    (told,) = (line for line in report.problems if "outside of its tolerance" in line)
    assert where in told
    if layer is not None:
        assert told.startswith(f"layers.{layer} is the first")
        assert min(failed_layers(report)) == layer
    (located,) = report.located
    tensor, told = FIRST[name]
    assert located.tensor == tensor
    assert told in located.diagnosis


def test_every_text_is_read_once():
    """Also where layers of two kinds have one rotation, as of sliding and of full attention: what
    is derived of a text is kept by its name."""
    yarn = layer("yarn", "float32")
    facts = SimpleNamespace(cache="growing", positions=64, padding=True)
    names = [text.name for text in regular_texts([yarn, replace(yarn, window=8)], facts)]
    assert "across position 64" in names
    assert len(names) == len(set(names))


@pytest.mark.usefixtures("briefly")
def test_what_eager_alone_gets_wrong_is_told_of_eager_alone(llama, monkeypatch):
    """As where float16 ends in eager and not in a runtime."""
    module = transformers.models.llama.modeling_llama.LlamaMLP
    forward = module.forward

    def wrong(self, x):
        return forward(self, x) * (1.0 if isinstance(active_mode(), Float64) else 1.5)

    monkeypatch.setattr(module, "forward", wrong)
    report = verify(llama, cases=["short"], runtimes=["onnxruntime"])
    assert report.status == "failed"
    assert [(x.runtime, x.tensor) for x in report.located] == [("eager", "layers.0.mlp")]


def sliced(output: str, axis: int) -> Change:
    """An output of the model without the first of an axis."""

    def change(graph):
        for node in graph.node:
            node.output[:] = ["sound" if x == output else x for x in node.output]
        bounds = ([1], [2**31], [axis])
        names = [f"planted{at}" for at in range(len(bounds))]
        for name, value in zip(names, bounds, strict=True):
            graph.initializer.append(numpy_helper.from_array(np.array(value), name))
        graph.node.append(helper.make_node("Slice", ["sound", *names], [output]))

    return change


@pytest.mark.usefixtures("briefly")
@pytest.mark.parametrize(
    ("axis", "shape"),
    [(2, "(1, 2, 6, 8)"), pytest.param(1, "(1, 1, 7, 8)", marks=pytest.mark.long)],
)
def test_outputs_of_another_shape_fail(llama, tmp_path, axis, shape):
    """Slots, or heads, of which one would be taken for all."""
    change = sliced("present.1.key", axis)
    report = verify(
        planted(llama, tmp_path / "out", change), cases=["short"], runtimes=["onnxruntime"]
    )
    assert report.status == "failed"
    assert report.problems[-1] == (
        f"layers.1 is the first outside of its tolerance on onnxruntime: present.1.key is "
        f"float32{shape}, not (1, 2, 7, 8)."
    )


@pytest.mark.usefixtures("briefly")
@pytest.mark.parametrize("runtime", ["openvino", pytest.param("web", marks=pytest.mark.long)])
def test_other_runtimes_are_judged_layer_by_layer_too(llama, tmp_path, runtime):
    """The layers that are cut out run where the whole does, and so does the search for a fault."""
    report = verify(llama, runtimes=[runtime])
    if report.skipped:
        pytest.skip(report.skipped[0]["reason"])
    assert report.status == "passed"
    assert not report.left_out
    outputs = {row.output for row in report.rows if row.runtime == runtime}
    assert outputs >= {"logits", "text", "present.2.value", "layers.3/hidden_states"}
    change, layer, _ = FAULTS["cache misplaced"]
    report = verify(planted(llama, tmp_path / "out", change), runtimes=[runtime])
    assert min(failed_layers(report)) == layer
    assert {(x.runtime, x.tensor) for x in report.located} == {(runtime, "present.1.key")}


@pytest.mark.usefixtures("briefly")
def test_what_is_wrong_here_is_not_told_of_the_other_side(llama, tmp_path):
    """A weight around the layers, against an artifact that has the right one."""
    change = scaled("model.embed_tokens.weight", 1.5, (1,))
    wrong = planted(llama, tmp_path / "out", change)
    report = verify(wrong, cases=["short"], runtimes=["onnxruntime"], against=llama.path)
    assert [x.runtime for x in report.located] == ["onnxruntime"]
    assert len([x for x in report.problems if "outside of its tolerance" in x]) == 1


@pytest.mark.usefixtures("briefly")
def test_a_weight_that_no_text_reads_is_found(llama, tmp_path):
    """The embedding of a token that is never drawn."""
    change = scaled("model.embed_tokens.weight", 1.5, (1,))
    report = verify(planted(llama, tmp_path / "out", change), runtimes=["onnxruntime"])
    assert {(x.runtime, x.output) for x in report.rows if x.status == "failed"} == {
        ("file", "model.embed_tokens.weight")
    }
    assert report.problems[0] == (
        "weights of the file that are not the source's: 1, the first model.embed_tokens.weight."
    )
    (located,) = report.located
    assert (located.tensor, located.value) == ("model.embed_tokens", "layers.0/hidden_states")
    assert dict(located.where)["token"] == 1
    assert "the embedding of token 1 is wrong: it is 1.5 times" in located.diagnosis


def failed_layers(report: Report) -> set[int]:
    """Layers of which a row failed, alone."""
    names = {row.output for row in report.rows if row.status == "failed"}
    entering = {int(x.split("/")[0].split(".")[1]) - 1 for x in names if "/" in x}
    return entering | {int(x.split(".")[1]) for x in names if x.startswith("present")}


@pytest.mark.long
@pytest.mark.usefixtures("briefly")
def test_another_base_is_found_in_the_first_layer(llama, tmp_path):
    """The frequencies are one initializer or constant, which all layers share."""

    def change(graph):
        for node in graph.node:
            for attribute in node.attribute if node.op_type == "Constant" else ():
                values = numpy_helper.to_array(attribute.t)
                if values.size == 4 and values.dtype == np.float32 and values.flat[0] == 1:
                    attribute.t.CopyFrom(numpy_helper.from_array(values ** np.float32(1.001)))
                    return
        raise AssertionError("no frequencies found")

    report = verify(planted(llama, tmp_path / "out", change), runtimes=["onnxruntime"])
    assert report.status == "failed"
    assert min(failed_layers(report)) == 0


def without_source(
    artifact: DecoderArtifact, path: Path, change: Change = lambda graph: None
) -> DecoderArtifact:
    """A copy whose source is gone, with its config beside it."""
    beside = {"config.json": (artifact.path / "config.json").read_text()}
    return planted(artifact, path, change, source=path / "gone", companions=beside)


@pytest.mark.usefixtures("briefly")
def test_weights_are_read_back_where_the_source_is_gone(llama, tmp_path):
    report = verify(without_source(llama, tmp_path / "out"), runtimes=["onnxruntime"])
    assert (report.status, report.weights, report.reading.status) == ("passed",) + ("unproven",) * 2
    assert str(report.reading.reason).startswith("the source is gone; give it with `source`")
    outputs = {row.output for row in report.rows}
    assert {"logits", "text", "layers.3/hidden_states"} <= outputs


@pytest.mark.usefixtures("briefly")
def test_a_fault_is_found_where_the_source_is_gone(llama, tmp_path):
    orphan = without_source(llama, tmp_path / "out", without_padding())
    report = verify(orphan, runtimes=["onnxruntime"])
    assert (report.status, report.weights) == ("failed", "unproven")
    assert any(line.startswith("layers.0 is the first") for line in report.problems)


def test_nothing_is_compared_without_source_and_config(llama, tmp_path):
    orphan = planted(llama, tmp_path / "out", lambda graph: None, source=tmp_path / "gone")
    report = verify(orphan, runtimes=["onnxruntime"])
    assert (report.status, report.weights) == ("nothing compared", "unproven")
    (skipped,) = report.skipped
    assert skipped["reason"].startswith("the source is gone; give it with `source`, and ")
    assert "config.json is missing" in skipped["reason"]
    assert not orphan.evidence.get("parity")


def test_nothing_is_compared_with_an_edited_config(llama, tmp_path):
    orphan = without_source(llama, tmp_path / "out")
    config = orphan.path / "config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps": ', '"rms_norm_eps": 1'))
    report = verify(orphan, runtimes=["onnxruntime"])
    assert report.status == "nothing compared"
    assert "config.json was edited" in report.skipped[0]["reason"]


def test_nothing_is_compared_without_transformers(llama, monkeypatch):
    monkeypatch.setattr(theirs, "installed", lambda: None)
    report = verify(llama, runtimes=["onnxruntime"])
    assert report.status == "nothing compared"
    assert "pip install 'rope_export[hf]'" in report.skipped[0]["reason"]


@pytest.mark.usefixtures("briefly")
def test_evidence_is_recorded_and_a_source_may_be_given(llama, tmp_path):
    source = llama.evidence["source"]
    moved = planted(llama, tmp_path / "out", lambda graph: None, source=tmp_path / "gone")
    assert verify(moved, source=source, runtimes=["onnxruntime"]).passed
    assert moved.evidence["parity"]["status"] == "passed"


def test_a_changed_tokenizer_is_refused(llama, tmp_path):
    copy = planted(llama, tmp_path / "out", lambda graph: None, companions={"tokenizer.json": "{}"})
    (copy.path / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(ArtifactError, match=r"tokenizer\.json: was changed since the export"):
        verify(copy)


KINDS = {
    "gemma2": (
        transformers.Gemma2Config(**SMALL, sliding_window=6, query_pre_attn_scalar=8),
        {"cache": "fixed", "lowering": "standard"},
    ),
    "qwen3, float16": (transformers.Qwen3Config(**SMALL), {"cache": "growing", "dtype": "float16"}),
    "mixtral": (
        transformers.MixtralConfig(**SMALL, num_local_experts=4),
        {"cache": "growing", "logits": "all"},
    ),
    "yarn": (
        transformers.LlamaConfig(
            **SMALL,
            rope_parameters={
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 64,
                "rope_theta": 10_000.0,
            },
        ),
        {"cache": "fixed"},
    ),
    "dynamic": (
        transformers.LlamaConfig(
            **SMALL | {"max_position_embeddings": 64},
            rope_parameters={"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10_000.0},
        ),
        {"cache": "growing"},
    ),
    "longrope": (
        transformers.Phi3Config(
            **{x: y for x, y in SMALL.items() if x != "head_dim"},
            original_max_position_embeddings=64,
            rope_parameters={
                "rope_type": "longrope",
                "short_factor": [1.0, 1.1, 1.2, 1.3],
                "long_factor": [1.5, 2.0, 3.0, 4.0],
                "rope_theta": 10_000.0,
            },
        ),
        {"cache": "fixed"},
    ),
    "int4": (
        transformers.LlamaConfig(**SMALL),
        {"cache": "growing", "weights": "int4", "block_size": 16, "accuracy_level": 1},
    ),
    "int4, activations in int8": (
        transformers.LlamaConfig(**SMALL),
        {"cache": "growing", "weights": "int4", "block_size": 16, "accuracy_level": 4},
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_decoders_of_other_kinds_pass(kind, tmp_path):
    config, options = KINDS[kind]
    source = checkpoint(tmp_path / "source", config)
    artifact = export_decoder(source, out=tmp_path / "out", **options)
    report = verify(artifact, runtimes=["onnxruntime"])
    assert report.status == "passed", report.problems
    cases = {row.case.partition(",")[0] for row in report.rows}
    assert ("unequal rows" in cases) == (options["cache"] == "fixed")
    if kind == "gemma2":
        assert "beyond the window of 6" in cases
    if kind in ("yarn", "dynamic", "longrope"):
        assert "across position 64" in cases


@pytest.mark.long
@pytest.mark.usefixtures("briefly")
def test_one_wrong_weight_in_twelve_layers(tmp_path):
    config = transformers.LlamaConfig(**{**SMALL, "num_hidden_layers": 12})
    source = checkpoint(tmp_path / "source", config)
    sound = export_decoder(source, out=tmp_path / "sound", lowering="ort", cache="fixed")
    name = "model.layers.7.self_attn.o_proj.weight"
    report = verify(
        planted(sound, tmp_path / "out", scaled(name, 1.02, (3, 5))), runtimes=["onnxruntime"]
    )
    assert failed_layers(report) == {7}
    assert report.problems[0].endswith(f"the first {name}.")
    assert report.problems[1].startswith("layers.7 is the first outside of its tolerance")


@pytest.mark.long
@pytest.mark.usefixtures("briefly")
def test_thirty_sound_draws_raise_no_alarm(llama):
    for seed in range(30):
        report = verify(llama, runtimes=["onnxruntime"], seed=seed)
        assert report.status == "passed", report.problems


@pytest.mark.usefixtures("briefly")
def test_texts_outside_of_the_profiles_are_counted_and_not_failed(llama, monkeypatch):
    def refused(*_, **__):
        raise ProfileError("batch 3 is outside of the profiles")

    monkeypatch.setattr(Session, "run", refused)
    monkeypatch.setattr(Session, "start", refused)
    report = verify(llama, runtimes=["onnxruntime"])
    assert report.status == "passed"
    assert "texts outside of the profiles of onnxruntime: 3." in report.left_out
    assert "no text was generated: it lies outside of the profiles." in report.left_out


def test_one_text_is_compared_by_its_name(llama) -> None:
    """Every call of it, whose errors are kept by position and place; evidence is about all."""
    before = llama.evidence.get("parity")
    report = verify(llama, runtimes=["onnxruntime"], cases=["decode, call 2"], spread=True)
    assert report.passed
    calls = {row.case for row in report.rows if row.runtime != "file"}
    assert calls == {f"decode, call {x}" for x in range(1, 5)}
    maps = report.spread.maps
    assert {output for runtime, output in maps if runtime != "eager"} == {
        "logits", "layers", "present",
    }  # fmt: skip
    layers = maps["onnxruntime", "layers"]
    assert layers.values.max() == pytest.approx(layers.row.used, rel=1e-6)
    assert (report.spread.positions["onnxruntime", "present"].error >= 0).sum() >= 8
    assert llama.evidence.get("parity") == before
    with pytest.raises(InputError, match=r"`case`='decod': there is no such case"):
        verify(llama, cases=["decod"])

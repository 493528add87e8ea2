"""Whole decoders: sound artifacts pass, and what is planted in one layer is found and named."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import helper, numpy_helper

from rope_export import export_decoder, verify
from rope_export.artifacts.decoder import DecoderArtifact
from rope_export.parity.decoder import greedy
from rope_export.parity.decoder.cases import regular_texts
from rope_export.parity.report.result import Report
from rope_export.parity.subjects import decoder as subject
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
    monkeypatch.setattr(subject, "Greedy", partial(greedy.Greedy, tokens=2))


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
    "head": (scaled("lm_head.weight", 1.001, (slice(None), 5)), None, "no layer alone"),
    "embedding": (scaled("model.embed_tokens.weight", 1.001), None, "no layer alone"),
}


@pytest.mark.usefixtures("briefly")
@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found_and_its_layer_named(llama, tmp_path, name):
    change, layer, where = FAULTS[name]
    report = verify(planted(llama, tmp_path / "out", change), runtimes=["onnxruntime"])
    assert report.status == "failed"
    (told,) = (line for line in report.problems if "outside of its tolerance" in line)
    assert where in told
    if layer is not None:
        assert told.startswith(f"layers.{layer} is the first")
        assert min(failed_layers(report)) == layer


def failed_layers(report: Report) -> set[int]:
    """Layers of which a row failed, alone."""
    names = {row.output for row in report.rows if row.status == "failed"}
    entering = {int(x.split("/")[0].split(".")[1]) - 1 for x in names if "/" in x}
    return entering | {int(x.split(".")[1]) for x in names if x.startswith("present")}


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

"""`verify` on files that others made: right ones pass, and what is wrong is named.

A right file of one config is a wrong one of another that has the same weights.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import helper

from rope_export.cli import run
from rope_export.errors import InputError
from rope_export.parity import Report, verify
from tests.conformance.exporters import torch_export, torch_layer
from tests.conformance.exporters.checkpoints import save
from tests.conformance.exporters.prove import KNOWN, missed
from tests.conformance.exporters.run import EXPORTERS, judge

pytestmark = pytest.mark.long

Source = Callable[..., Path]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a tiny Llama."""
    return save("default", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def decoder(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its file by `torch.onnx.export`."""
    return torch_export.export(llama, tmp_path_factory.mktemp("exported"))


@pytest.fixture
def altered(llama: Path, tmp_path: Path) -> Source:
    """The same checkpoint with other facts in its config."""

    def make(**facts: Any) -> Path:
        folder = shutil.copytree(llama, tmp_path / "altered")
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        rope = config["rope_parameters"] | facts.pop("rope", {})
        config |= {"rope_parameters": rope} | facts
        for key in ("rope_scaling",):
            config.pop(key, None)
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        return folder

    return make


def test_a_right_decoder_passes(decoder: Path, llama: Path) -> None:
    report = verify(decoder, source=llama)
    assert report.passed, report.problems
    assert (report.weights, report.reading.status) == ("proven", "proven")
    assert report.causes == []
    ran = {row.case.partition(",")[0] for row in report.rows if row.runtime == "onnxruntime"}
    texts = {"short", "two rows", "decode", "chunk", "chunk of two rows", "left padding", "long"}
    assert ran == {*texts, "greedy"}


@pytest.mark.parametrize(
    ("facts", "causes"),
    [
        ({"rope": {"rope_type": "linear", "factor": 4.0}}, {"rope scaling"}),
        ({"rope": {"rope_type": "dynamic", "factor": 4.0}, "max_position_embeddings": 64},
         {"rope scaling"}),
        ({"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 8},
         {"window"}),
        ({"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 8,
          "rope": {"rope_type": "linear", "factor": 4.0}}, {"window", "rope scaling"}),
        ({"rope": {"rope_theta": 500.0}}, {"unknown"}),
    ],
    ids=["linear", "dynamic", "window", "both", "base"],
)  # fmt: skip
def test_what_is_wrong_is_named(
    decoder: Path, altered: Source, facts: dict[str, Any], causes: set[str]
) -> None:
    report = verify(decoder, source=altered(**facts))
    assert report.status == "failed"
    assert named(report) == causes


def test_padding_that_is_not_looked_at_is_named(decoder: Path, llama: Path, tmp_path: Path) -> None:
    model = onnx.load(str(decoder))
    for node in model.graph.node:
        for at, name in enumerate(node.input):
            if name == "attention_mask":
                node.input[at] = "ones"
    one = helper.make_tensor("one", onnx.TensorProto.INT64, [], [1])
    model.graph.initializer.append(one)
    model.graph.node.insert(0, helper.make_node("Max", ["attention_mask", "one"], ["ones"]))
    onnx.save(model, str(tmp_path / "model.onnx"))
    report = verify(tmp_path / "model.onnx", source=llama)
    assert named(report) == {"padding"}
    assert {cause["texts"] for cause in report.causes} == {"left padding"}


def test_weights_are_read_from_the_file_by_its_config(decoder: Path, llama: Path) -> None:
    report = verify(decoder, spec=llama / "config.json")
    assert report.passed, report.problems
    assert report.weights == "unproven"


def test_a_layer_is_judged_by_its_source(llama: Path, altered: Source, tmp_path: Path) -> None:
    path = torch_layer.export(llama, tmp_path / "layer.onnx", layer=1)
    report = verify(path, source=llama, layer=1)
    assert report.passed, report.problems
    assert any("cos and sin are inputs" in line for line in report.left_out)
    assert verify(path, source=llama, layer=0).status == "failed"


def test_the_command_tells_what_it_needs(
    decoder: Path, llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["verify", str(decoder)]) == 2
    assert "Give the checkpoint that it was made of as --source" in capsys.readouterr().err
    assert run(["verify", str(decoder), "--source", str(llama), "--map", "a=b"]) == 2
    assert "--map a=b: 'a' is no name of ours" in capsys.readouterr().err


def test_source_and_spec_are_one_or_the_other(decoder: Path, llama: Path) -> None:
    with pytest.raises(InputError, match="as `source`, or its config alone as `spec`"):
        verify(decoder, source=llama, spec=llama / "config.json")


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_known_faults_of_exporters_are_named(exporter: str) -> None:
    """Of every variant that the exporter is known to get wrong."""
    for variant, other in KNOWN:
        if other == exporter:
            assert missed(judge(variant, exporter)) == set(), variant


def named(report: Report) -> set[str]:
    return {cause["cause"] for cause in report.causes}

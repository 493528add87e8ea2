"""`verify` on files that others made: right ones pass, and what is wrong is named.

A right file of one config is a wrong one of another that has the same weights.
"""

import copy
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import helper

from rope_export import export
from rope_export.cli import run
from rope_export.errors import InputError, UnavailableError
from rope_export.parity import Report, verify
from rope_export.parity.decoder.theirs import Theirs
from rope_export.parity.onnx_file.altered import Alteration
from rope_export.parity.onnx_file.causes import Causes
from tests.conformance.exporters import samples, torch_export, torch_layer
from tests.conformance.exporters.checkpoints import save
from tests.conformance.exporters.prove import KNOWN, missed
from tests.conformance.exporters.run import EXPORTERS, judge

Config = Callable[..., Path]

SCALED = {"rope_type": "linear", "factor": 4.0}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0}
MISTRAL = {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 8}


@pytest.fixture
def decoder(tmp_path: Path) -> Path:
    """A tiny Llama by `torch.onnx.export`."""
    return samples.unpack("default", tmp_path)


@pytest.fixture
def altered(tmp_path: Path) -> Config:
    """Its config with other facts."""

    def make(**facts: Any) -> Path:
        config = json.loads(samples.config("default").read_text(encoding="utf-8"))
        rope = config["rope_parameters"] | facts.pop("rope", {})
        path = tmp_path / "config.json"
        path.write_text(json.dumps(config | facts | {"rope_parameters": rope}), encoding="utf-8")
        return path

    return make


def test_a_right_decoder_passes(decoder: Path) -> None:
    report = verify(decoder, spec=samples.config("default"))
    assert report.passed, report.problems
    assert (report.weights, report.reading.status) == ("unproven", "proven")
    assert report.causes == []
    ran = {row.case.partition(",")[0] for row in report.rows if row.runtime == "onnxruntime"}
    texts = {"short", "two rows", "decode", "chunk", "chunk of two rows", "left padding", "long"}
    assert ran == {*texts, "greedy"}


@pytest.mark.parametrize(
    ("facts", "causes"),
    [
        ({"rope": SCALED}, {"rope scaling"}),
        pytest.param(
            {"rope": DYNAMIC, "max_position_embeddings": 64},
            {"rope scaling"},
            marks=pytest.mark.long,
        ),
        (MISTRAL, {"window"}),
        pytest.param(
            MISTRAL | {"rope": SCALED}, {"window", "rope scaling"}, marks=pytest.mark.long
        ),
        pytest.param({"rope": {"rope_theta": 50.0}}, {"unknown"}, marks=pytest.mark.long),
    ],
    ids=["linear", "dynamic", "window", "both", "base"],
)
def test_what_is_wrong_is_named(
    decoder: Path, altered: Config, facts: dict[str, Any], causes: set[str]
) -> None:
    report = verify(decoder, spec=altered(**facts))
    assert report.status == "failed"
    assert named(report) == causes


@pytest.mark.parametrize(
    ("variant", "causes"),
    [
        ("linear", {"rope scaling", "padding"}),  # onnxruntime-genai
        ("sliding", {"window"}),  # mobius
        ("softcap", {"softcap"}),  # optimum-onnx
    ],
)
def test_what_is_wrong_with_files_of_other_exporters_is_named(
    tmp_path: Path, variant: str, causes: set[str]
) -> None:
    report = verify(samples.unpack(variant, tmp_path), spec=samples.config(variant))
    assert named(report) == causes


@pytest.mark.long
def test_altered_models_keep_no_weights_in_float64(
    decoder: Path, altered: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or there would be twice the model for each of dozens of them."""
    made: list[Theirs] = []
    make = Causes._theirs

    def noted(causes: Causes, several: Any) -> Theirs | None:
        theirs = make(causes, several)
        made.extend([] if theirs is None else [theirs])
        return theirs

    monkeypatch.setattr(Causes, "_theirs", noted)
    verify(decoder, spec=altered(rope=SCALED))
    assert made
    assert not any(theirs.widened._kept for theirs in made)


def test_an_altered_model_that_cannot_read_a_text_explains_nothing(
    decoder: Path, altered: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And leaves no thread behind, which waits for its layer."""

    def alterations(theirs: Theirs) -> list[Alteration]:
        def make() -> Any:
            model = copy.deepcopy(theirs.model)
            del model.model.layers[0].self_attn.o_proj
            return model

        return [Alteration(cause="window", fault="without its projection", make=make)]

    monkeypatch.setattr("rope_export.parity.onnx_file.causes.alterations", alterations)
    before = threading.active_count()
    report = verify(decoder, spec=altered(rope=SCALED), cases=["short"])
    assert named(report) == {"unknown"}
    assert threading.active_count() == before


def test_padding_that_is_not_looked_at_is_named(decoder: Path) -> None:
    model = onnx.load(str(decoder))
    for node in model.graph.node:
        for at, name in enumerate(node.input):
            if name == "attention_mask":
                node.input[at] = "ones"
    one = helper.make_tensor("one", onnx.TensorProto.INT64, [], [1])
    model.graph.initializer.append(one)
    model.graph.node.insert(0, helper.make_node("Max", ["attention_mask", "one"], ["ones"]))
    onnx.save(model, str(decoder))
    report = verify(decoder, spec=samples.config("default"))
    assert named(report) == {"padding"}
    assert {cause["texts"] for cause in report.causes} == {"left padding"}


def test_what_the_inputs_cannot_take_is_left_out(decoder: Path) -> None:
    """The batch is always 1, and there is no mask."""
    model = onnx.load(str(decoder))
    for value in model.graph.input:
        if value.name == "input_ids":
            value.type.tensor_type.shape.dim[0].dim_value = 1
    mask = next(x for x in model.graph.input if x.name == "attention_mask")
    model.graph.input.remove(mask)
    ones = helper.make_tensor("one", onnx.TensorProto.INT64, [1], [1])
    model.graph.initializer.append(ones)
    nodes = [
        helper.make_node("Shape", ["past_key_values.0.key"], ["past"], start=2, end=3),
        helper.make_node("Shape", ["input_ids"], ["new"], start=1, end=2),
        helper.make_node("Add", ["past", "new"], ["total"]),
        helper.make_node("Concat", ["one", "total"], ["shape"], axis=0),
        helper.make_node("Expand", ["one", "shape"], ["attention_mask"]),
    ]
    for at, node in enumerate(nodes):
        model.graph.node.insert(at, node)
    onnx.save(model, str(decoder))
    report = verify(decoder, spec=samples.config("default"))
    assert report.passed, report.problems
    assert {
        "left padding: not supported by its inputs, there is no attention_mask.",
        "two rows: not supported by its inputs, the batch is always 1.",
        "chunk of two rows: not supported by its inputs, the batch is always 1.",
    } <= set(report.left_out)


def fix(graph: Any, name: str, axis: int, size: int) -> None:
    value = next(x for x in (*graph.input, *graph.output) if x.name == name)
    value.type.tensor_type.shape.dim[axis].dim_value = size


def test_the_logits_of_the_last_token_are_known_in_a_batch_of_one_size(decoder: Path) -> None:
    model = onnx.load(str(decoder))
    (node,) = [x for x in model.graph.node if "logits" in x.output]
    node.output[0] = "every"
    bounds = {"start": -1, "end": 2**31, "axis": 1}
    model.graph.initializer.extend(
        helper.make_tensor(name, onnx.TensorProto.INT64, [1], [x]) for name, x in bounds.items()
    )
    model.graph.node.append(helper.make_node("Slice", ["every", *bounds], ["logits"]))
    fix(model.graph, "input_ids", 0, 2)
    fix(model.graph, "logits", 1, 1)
    onnx.save(model, str(decoder))
    report = verify(decoder, spec=samples.config("default"))
    assert report.passed, report.problems
    ran = {row.case.partition(",")[0] for row in report.rows if row.runtime == "onnxruntime"}
    assert ran == {"two rows", "chunk of two rows"}
    assert "no text was generated: it lies outside of the profiles." in report.left_out


def test_where_the_inputs_take_no_text_nothing_is_compared(decoder: Path) -> None:
    model = onnx.load(str(decoder))
    fix(model.graph, "input_ids", 0, 5)
    onnx.save(model, str(decoder))
    report = verify(decoder, spec=samples.config("default"))
    assert report.status == "nothing compared"
    assert "short: not supported by its inputs, the batch is always 5." in report.left_out


def test_a_weight_that_is_not_found_is_named(decoder: Path, altered: Config) -> None:
    wide = altered(intermediate_size=24)
    with pytest.raises(UnavailableError, match=r"the first: model\.layers\.0\.mlp\.gate_proj"):
        verify(decoder, spec=wide)


def test_the_command_tells_what_it_needs(decoder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", str(decoder)]) == 2
    assert "Give the checkpoint that it was made of as --source, or its config alone as --spec" in (
        capsys.readouterr().err
    )
    spec = ["--spec", str(samples.config("default"))]
    assert run(["verify", str(decoder), *spec, "--map", "a=b"]) == 2
    assert "--map a=b: 'a' is no name of ours" in capsys.readouterr().err
    assert run(["verify", str(decoder), *spec, "--map", "input_ids=attention_mask"]) == 3
    assert (
        "and it is not known what that is. Name it with --map OURS=THEIRS"
        in capsys.readouterr().err
    )


def test_source_and_spec_are_one_or_the_other(decoder: Path) -> None:
    spec = samples.config("default")
    with pytest.raises(InputError, match="as `source`, or its config alone as `spec`"):
        verify(decoder, source=spec, spec=spec)


@pytest.mark.long
def test_a_decoder_of_a_checkpoint_is_proven_and_another_ones_is_not(tmp_path: Path) -> None:
    source = save("default", tmp_path / "source")
    path = torch_export.export(source, tmp_path / "exported")
    report = verify(path, source=source)
    assert report.passed, report.problems
    assert report.weights == "proven"
    other = verify(path, source=save("default", tmp_path / "other", seed=1))
    assert named(other) == {"unknown"}


@pytest.mark.long
def test_a_layer_is_judged_by_its_source(tmp_path: Path) -> None:
    source = save("default", tmp_path / "source")
    path = torch_layer.export(source, tmp_path / "layer.onnx", layer=1)
    report = verify(path, source=source, layer=1)
    assert report.passed, report.problems
    assert any("cos and sin are inputs" in line for line in report.left_out)
    assert verify(path, source=source, layer=0).status == "failed"
    config = source / "config.json"
    unproven = verify(path, spec=config, layer=1)
    assert (unproven.passed, unproven.weights) == (True, "unproven")
    facts = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps(facts | MISTRAL), encoding="utf-8")
    windowed = verify(path, source=source, layer=1)
    assert windowed.passed, windowed.problems  # its mask is an input, as its angles are


@pytest.mark.long
@pytest.mark.parametrize("exporter", EXPORTERS)
def test_known_faults_of_exporters_are_named(exporter: str) -> None:
    """Of every variant that the exporter is known to get wrong."""
    for variant, other in KNOWN:
        if other == exporter:
            assert missed(judge(variant, exporter)) == set(), variant


def named(report: Report) -> set[str]:
    return {cause["cause"] for cause in report.causes}


@pytest.mark.long
@pytest.mark.parametrize(
    ("facts", "causes"),
    [
        ({}, set()),
        ({"rope": SCALED}, {"rope scaling"}),
        (MISTRAL, {"window"}),
    ],
    ids=["right", "linear", "window"],
)
def test_what_is_wrong_with_a_layer_is_named(
    altered: Config, tmp_path: Path, facts: dict[str, Any], causes: set[str]
) -> None:
    """A layer that takes positions; its weights are drawn, and the same whatever the config."""
    artifact = export(samples.config("default"), out=tmp_path / "layer", cache="growing")
    report = verify(artifact.path / "model.onnx", source=altered(**facts), layer=0)
    assert report.passed == (not causes), report.problems
    assert named(report) == causes

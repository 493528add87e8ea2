"""Faults in one layer of a decoder of twelve: each is planted in the ONNX file alone, at a tensor
that the file names."""

import functools
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx
import torch
import transformers
from onnx import helper, numpy_helper

from rope_export import export_decoder, verify
from rope_export.artifacts.decoder import DecoderArtifact
from rope_export.exporter.taps import KEY
from rope_export.parity.decoder import prompts
from rope_export.parity.decoder.cases import regular_texts
from rope_export.parity.subjects import decoder as subject
from tests.conformance.faults.run import Verdict
from tests.support.planted_decoder import Change, permuted, planted, scaled, through

LAYERS, LAYER = 12, 7
WAYS = ("ort", "portable", "standard")
TEXTS = ("short", "decode", "left padding")
NAME = "layer 7 of a decoder"

Fault = tuple[str, tuple[str, ...], Callable[[onnx.ModelProto], Change]]
"""A name, the tensors of the layer of which the first that the file has is wrong first, and what
is done to the graph."""


def at(tensor: str) -> str:
    return f"layers.{LAYER}.{tensor}"


def weight(module: str) -> str:
    return f"model.layers.{LAYER}.{module}.weight"


def made_of(tensor: str, operator: str, *constants: np.ndarray, **attributes: Any) -> Fault:
    """The tensor goes through an operator before anything takes it."""

    def change(model: onnx.ModelProto) -> Change:
        value = names_in(model)[at(tensor)]

        def to(whole: onnx.GraphProto) -> None:
            graph = holding(whole, value)
            for node in graph.node:
                node.output[:] = ["sound" if x == value else x for x in node.output]
            names = []
            for index, constant in enumerate(constants):
                names.append(f"planted_{index}")
                whole.initializer.append(numpy_helper.from_array(constant, names[-1]))
            place = next(i + 1 for i, x in enumerate(graph.node) if "sound" in x.output)
            graph.node.insert(
                place, helper.make_node(operator, ["sound", *names], [value], **attributes)
            )

        return to

    return f"{tensor} through {operator}", (tensor,), change


def names_in(model: onnx.ModelProto) -> dict[str, str]:
    """The ONNX values of the tensors that a file names, in branches or not."""
    entry = next(x.value for x in model.metadata_props if x.key == KEY)
    return {tensor: value for tensor, (value, _) in json.loads(entry).items()}


def holding(graph: onnx.GraphProto, value: str) -> onnx.GraphProto:
    """The graph, or that of a branch, in which a value is computed."""
    if any(value in node.output for node in graph.node):
        return graph
    branches = (x.g for node in graph.node for x in node.attribute if x.HasField("g"))
    return next(x for x in branches if any(value in node.output for node in x.node))


def in_one_form(form: str, branch: str) -> Fault:
    """Another scale in one of the two forms of an attention."""

    def change(model: onnx.ModelProto) -> Change:
        def to(graph: onnx.GraphProto) -> None:
            context = names_in(model)[at("self_attn.context")]
            chosen = next(x for x in graph.node if context in x.output and x.op_type == "If")
            for node in next(x.g for x in chosen.attribute if x.name == branch).node:
                for attribute in node.attribute:
                    if (node.op_type, attribute.name) == ("GroupQueryAttention", "scale"):
                        attribute.f *= 2

        return to

    return f"scale doubled in the {form} form", ("self_attn.context",), change


def instead(name: str, tensor: str, other: str, *first: str) -> Fault:
    """Who takes one tensor takes another one in its place."""

    def change(model: onnx.ModelProto) -> Change:
        names = names_in(model)
        value, taken = names[at(tensor)], names[at(other)]
        return through(value, helper.make_node("Identity", [taken], ["planted"]))

    return name, first, change


def plain(name: str, change: Change, *first: str) -> Fault:
    return name, first, lambda model: change


def float32(value: object) -> np.ndarray:
    return np.array(value, np.float32)


def another_layers(module: str) -> Change:
    def change(graph: onnx.GraphProto) -> None:
        tensors = {x.name: x for x in graph.initializer}
        name = weight(module)
        other = numpy_helper.to_array(tensors[name.replace(f".{LAYER}.", f".{LAYER - 1}.")])
        tensors[name].CopyFrom(numpy_helper.from_array(other, name))

    return change


FAULTS: list[Fault] = [
    made_of("input_layernorm", "Mul", float32(1.001)),
    made_of("self_attn.q_proj", "Neg"),
    made_of("self_attn.k_proj", "Add", float32(np.eye(16)[3] * 1e-2)),
    made_of("self_attn.v_proj", "Gather", np.roll(np.arange(16), 8), axis=-1),
    made_of("self_attn.q_rotated", "Neg"),
    made_of("self_attn.k_rotated", "Mul", float32(1.01)),
    made_of("self_attn.context", "Mul", float32(0.5)),
    made_of("self_attn.o_proj", "Mul", float32(1.0005)),
    made_of("post_attention_layernorm", "Mul", float32(0.999)),
    made_of("mlp.up_proj", "Clip", float32(-0.5), float32(0.5)),
    made_of("mlp.act_fn", "Relu"),
    made_of("mlp.down_proj", "Neg"),
    instead("the activation is left out", "mlp.act_fn", "mlp.gate_proj", "mlp.down_proj"),
    instead(
        "the second norm is left out",
        "post_attention_layernorm",
        "post_attention_layernorm.input",
        "mlp.gate_proj",
    ),
    plain("one weight", scaled(weight("mlp.down_proj"), 1.01, (5, 3)), "mlp.down_proj"),
    plain("norm weights", scaled(weight("input_layernorm"), 1.0001), "input_layernorm"),
    plain("weights of q_norm", scaled(weight("self_attn.q_norm"), 1.01), "self_attn.q_norm"),
    plain("weights of another layer", another_layers("mlp.down_proj"), "mlp.down_proj"),
    plain(
        "heads in another order",
        permuted(weight("self_attn.o_proj"), [1, 0, 2, 3], 0),
        "self_attn.o_proj",
    ),
    plain(
        "cached keys negated",
        through(
            f"past_key_values.{LAYER}.key",
            helper.make_node("Neg", [f"past_key_values.{LAYER}.key"], ["planted"]),
        ),
        f"present.{LAYER}.key",
    ),
]
FORMS = [in_one_form("plain", "then_branch"), in_one_form("general", "else_branch")]
"""Faults of a lowering whose attention has two forms."""


def every(lowering: str) -> list[Fault]:
    return [*FAULTS, *(FORMS if lowering == "ort" else [])]


@functools.cache
def sound(lowering: str) -> DecoderArtifact:
    """The decoder, in a folder that lasts as long as this process."""
    folder = Path(_FOLDER.name)
    source = folder / "source"
    if not source.exists():
        _save(source)
    return export_decoder(source, out=folder / lowering, lowering=lowering, cache="growing")


_FOLDER = tempfile.TemporaryDirectory()


def _save(source: Path) -> None:
    config = transformers.Qwen3Config(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        vocab_size=64,
        max_position_embeddings=256,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, parameter.shape[-1] ** -0.5)
            else:
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    model.save_pretrained(source)


def judged(fault: int | None, lowering: str) -> Verdict:
    """The verdict on the decoder with one of the faults, or without."""
    artifact = sound(lowering)
    name, first, change = ("", (), None) if fault is None else every(lowering)[fault]
    with tempfile.TemporaryDirectory() as folder:
        if change is not None:
            model = onnx.load(artifact.path / "model.onnx")
            artifact = planted(artifact, Path(folder) / "x", change(model))
        with (
            patch.object(subject, "regular_texts", _few),
            patch.object(prompts, "TOKENS", 2),
        ):
            report = verify(artifact, runtimes=["onnxruntime"])
    rows = [row for row in report.rows if row.runtime == "onnxruntime"]
    worst = max(rows, key=lambda row: (row.status == "failed", row.used))
    located = next((x for x in report.located if x.runtime == "onnxruntime"), None)
    there = [] if located is None else [tap.tensor for tap in located.taps]
    expected = [x if x.startswith("present") else at(x) for x in first]
    return Verdict(
        layer=NAME,
        fault=name,
        lowering=lowering,
        dtype="float32",
        status=report.status,
        failed=sum(row.status == "failed" for row in rows),
        case=worst.case,
        error=worst.error,
        tolerance=worst.tolerance,
        hidden=(),
        tensor="" if located is None else located.tensor,
        expected=next((x for x in expected if x in there), ""),
        diagnosis="" if located is None else located.diagnosis,
    )


def _few(*facts: object) -> list[object]:
    return [text for text in regular_texts(*facts) if text.name in TEXTS]  # type: ignore[arg-type]


def work() -> Iterator[tuple[int | None, str]]:
    """What `judged` takes, one lowering after the other."""
    for lowering in WAYS:
        yield from ((fault, lowering) for fault in (None, *range(len(every(lowering)))))


def title(fault: int | None, lowering: str) -> str:
    name = "sound" if fault is None else every(lowering)[fault][0]
    return f"{NAME}, {name}, {lowering}"

"""Faults in decoders: in one layer of twelve, and in embedding, last norm and head. Each is planted
in the ONNX file alone, at a tensor that the file names."""

import functools
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx
import torch
import transformers
from onnx import helper

from rope_export import export_decoder, verify
from rope_export.artifacts.decoder import DecoderArtifact
from rope_export.parity.decoder import prompts
from rope_export.parity.decoder.cases import regular_texts
from rope_export.parity.subjects import decoder as subject
from tests.conformance.faults import graphs
from tests.conformance.faults.graphs import Plan, names_in, of_one_form
from tests.conformance.faults.run import Verdict
from tests.support.planted_decoder import Change, permuted, planted, scaled, through

LAYERS, LAYER = 12, 7
WAYS = ("ort", "portable", "standard", "tensorrt")
TEXTS = ("short", "left padding")
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 64,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TWELVE = "12 layers"
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    TWELVE: ("Qwen3Config", {"num_hidden_layers": LAYERS, "tie_word_embeddings": False}),
    "softcap of logits": (
        "Gemma2Config",
        {
            "num_hidden_layers": 2,
            "final_logit_softcapping": 2.0,
            "query_pre_attn_scalar": 8,
            "sliding_window": 64,
        },
    ),
    "scales around layers": (
        "GraniteConfig",
        {
            "num_hidden_layers": 2,
            "logits_scaling": 4.0,
            "embedding_multiplier": 3.0,
            "tie_word_embeddings": False,
        },
    ),
}
"""Decoders: the class of their config and what differs from `SIZES`."""

ENTERS = "layers.0/hidden_states"


@dataclass(frozen=True, kw_only=True, eq=False)
class DecoderFault:
    """first: the tensor that is wrong first, and those that are in the files that do not have it.
    plan: what is done to the model. lowerings: that can have it; why: others cannot."""

    name: str
    first: tuple[str, ...]
    plan: Plan
    kind: str
    lowerings: tuple[str, ...] = WAYS
    why: str = ""


def at(tensor: str) -> str:
    return f"layers.{LAYER}.{tensor}"


def weight(module: str) -> str:
    return f"model.layers.{LAYER}.{module}.weight"


def in_layer(name: str, plan: Plan, *first: str, **how: Any) -> DecoderFault:
    tensors = tuple(x if x.startswith("present") else at(x) for x in first)
    return DecoderFault(name=name, first=tensors, plan=plan, kind="one layer of twelve", **how)


def around(name: str, plan: Plan, *first: str) -> DecoderFault:
    return DecoderFault(name=name, first=first, plan=plan, kind="around the layers")


def made_of(tensor: str, operator: str, *constants: np.ndarray, **attributes: Any) -> DecoderFault:
    plan = graphs.made_of(at(tensor), operator, *constants, **attributes)
    return in_layer(f"{tensor} through {operator}", plan, tensor)


def always(change: Change) -> Plan:
    return lambda model: change


def in_one_form(form: str, branch: str) -> DecoderFault:
    """Another scale in one of the two forms of an attention."""

    def change(model: onnx.ModelProto) -> Change:
        def to(graph: onnx.GraphProto) -> None:
            context = names_in(model)[at("self_attn.context")]
            chosen = next(x for x in graph.node if context in x.output and x.op_type == "If")
            for node in of_one_form(chosen, branch).node:
                for attribute in node.attribute:
                    if (node.op_type, attribute.name) == ("GroupQueryAttention", "scale"):
                        attribute.f *= 2

        return to

    return in_layer(
        f"scale doubled in the {form} form",
        change,
        "self_attn.context",
        lowerings=("ort",),
        why="its attention has one form",
    )


def past_through(operator: str, cache: str, *taken: np.ndarray) -> Plan:
    """The past of the layer goes through an operator."""
    name = f"past_key_values.{LAYER}.{cache}"
    constants = [f"planted_{x}" for x in range(len(taken))]
    nodes = [
        helper.make_node("Constant", [], [x], value=onnx.numpy_helper.from_array(value))
        for x, value in zip(constants, taken, strict=True)
    ]
    node = helper.make_node(operator, [name, *constants], ["planted"])
    return always(through(name, *nodes, node))


def float32(value: object) -> np.ndarray:
    return np.array(value, np.float32)


def int64(value: int) -> np.ndarray:
    return np.array([value], np.int64)


def another_layers(own: np.ndarray, every: dict[str, np.ndarray]) -> np.ndarray:
    return every[weight("mlp.down_proj").replace(f".{LAYER}.", f".{LAYER - 1}.")]


def exchanged(first: int, second: int, axis: int) -> Any:
    """Two rows, or columns, of a weight."""

    def change(own: np.ndarray, _: dict[str, np.ndarray]) -> np.ndarray:
        order = np.arange(own.shape[axis])
        order[[first, second]] = second, first
        return own.take(order, axis)

    return change


def of_embedding(own: np.ndarray, every: dict[str, np.ndarray]) -> np.ndarray:
    return every["model.embed_tokens.weight"].T


IN_A_LAYER = [
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
    in_layer(
        "the activation is left out",
        graphs.taken_instead(at("mlp.act_fn"), at("mlp.gate_proj")),
        "mlp.down_proj",
    ),
    in_layer(
        "the second norm is left out",
        graphs.taken_instead(at("post_attention_layernorm"), at("post_attention_layernorm.input")),
        "mlp.gate_proj",
    ),
    in_layer("one weight", always(scaled(weight("mlp.down_proj"), 1.01, (5, 3))), "mlp.down_proj"),
    in_layer("norm weights", always(scaled(weight("input_layernorm"), 1.0001)), "input_layernorm"),
    in_layer(
        "weights of q_norm", always(scaled(weight("self_attn.q_norm"), 1.01)), "self_attn.q_norm"
    ),
    in_layer(
        "weights of another layer",
        always(graphs.weight_of(weight("mlp.down_proj"), another_layers)),
        "mlp.down_proj",
    ),
    in_layer(
        "heads in another order",
        always(permuted(weight("self_attn.o_proj"), [1, 0, 2, 3], 0)),
        "self_attn.o_proj",
    ),
    in_layer("cached keys negated", past_through("Neg", "key"), f"present.{LAYER}.key"),
    in_layer(
        "cached values of another row",
        past_through("Slice", "value", int64(-1), int64(-(2**62)), int64(0), int64(-1)),
        f"present.{LAYER}.value",
    ),
    in_one_form("plain", "then_branch"),
    in_one_form("general", "else_branch"),
]
EMBEDDING, NORM, HEAD = "model.embed_tokens", "model.norm", "lm_head"
AROUND = [
    around(
        "embeddings of two tokens exchanged",
        always(graphs.weight_of(f"{EMBEDDING}.weight", exchanged(17, 40, 0))),
        EMBEDDING,
    ),
    around(
        "embedding of one token",
        always(scaled(f"{EMBEDDING}.weight", 1.001, (23,))),
        EMBEDDING,
    ),
    around("embedding through Mul", graphs.made_of(EMBEDDING, "Mul", float32(0.5)), EMBEDDING),
    around("weights of the last norm", always(scaled(f"{NORM}.weight", 1.001, (3,))), NORM),
    around("last norm through Mul", graphs.made_of(NORM, "Mul", float32(1.0005)), NORM),
    around(
        "the last norm is left out",
        graphs.taken_instead(NORM, f"layers.{LAYERS}/hidden_states"),
        HEAD,
    ),
    around(
        "one logit of the head", always(scaled(f"{HEAD}.weight", 1.001, (slice(None), 5))), HEAD
    ),
    around(
        "two logits exchanged",
        always(graphs.weight_of(f"{HEAD}.weight", exchanged(9, 30, 1))),
        HEAD,
    ),
    around(
        "head with the embedding's weights",
        always(graphs.weight_of(f"{HEAD}.weight", of_embedding)),
        HEAD,
    ),
]
SOFTCAP = [
    around("softcap of logits left out", graphs.left_out("logits", HEAD), "logits"),
    around("softcap of logits doubled", graphs.narrower_between(HEAD, "logits", 0.5), "logits"),
]
SCALES = [
    around("embedding's multiplier left out", graphs.left_out(ENTERS, EMBEDDING), ENTERS),
    around("scale of logits left out", graphs.left_out("logits", HEAD), "logits"),
]
FAULTS = {
    TWELVE: [*IN_A_LAYER, *AROUND],
    "softcap of logits": SOFTCAP,
    "scales around layers": SCALES,
}


@functools.cache
def sound(model: str, lowering: str, cache: str, dtype: str) -> DecoderArtifact:
    """The decoder, in a folder that lasts as long as this process."""
    folder = Path(_FOLDER.name) / model.replace(" ", "-")
    source = folder / "source"
    if not source.exists():
        _save(model, source)
    out = folder / f"{lowering}-{cache}-{dtype}"
    kept: Any = {"cache": cache, "dtype": dtype}
    return export_decoder(source, out=out, lowering=lowering, **kept)


_FOLDER = tempfile.TemporaryDirectory()


def _save(name: str, source: Path) -> None:
    config, facts = MODELS[name]
    made = getattr(transformers, config)(**{**SIZES, **facts})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(made, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, parameter.shape[-1] ** -0.5)
            else:
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    model.save_pretrained(source)


def judged(
    model: str, fault: str, lowering: str, cache: str = "growing", dtype: str = "float32"
) -> Verdict:
    """The verdict on a decoder with one of its faults, or without where `fault` is empty."""
    artifact = sound(model, lowering, cache, dtype)
    chosen = next((x for x in FAULTS[model] if x.name == fault), None)
    with tempfile.TemporaryDirectory() as folder:
        if chosen is not None:
            change = chosen.plan(onnx.load(artifact.path / "model.onnx"))
            artifact = planted(artifact, Path(folder) / "x", change)
        with (
            patch.object(subject, "regular_texts", _few),
            patch.object(prompts, "TOKENS", 2),
        ):
            report = verify(artifact, runtimes=["onnxruntime"])
    rows = [row for row in report.rows if row.runtime in ("onnxruntime", "file")]
    worst = max(rows, key=lambda row: (row.status == "failed", row.used))
    located = next((x for x in report.located if x.runtime == "onnxruntime"), None)
    there = [] if located is None else [tap.tensor for tap in located.taps]
    expected = () if chosen is None else chosen.first
    return Verdict(
        layer=f"decoder, {model}",
        fault=fault,
        lowering=lowering,
        dtype=dtype,
        status=report.status,
        failed=sum(row.status == "failed" for row in rows),
        case=worst.case,
        error=worst.error,
        tolerance=worst.tolerance,
        hidden=(),
        tensor="" if located is None else located.tensor,
        expected=next((x for x in expected if x in there), ""),
        diagnosis="" if located is None else located.diagnosis,
        kind="" if chosen is None else chosen.kind,
    )


def _few(*facts: object) -> list[object]:
    return [text for text in regular_texts(*facts) if text.name in TEXTS]  # type: ignore[arg-type]


def work() -> Iterator[dict[str, str]]:
    """What `judged` takes, one lowering after the other, those with a fault first."""
    for lowering in WAYS:
        for model, faults in FAULTS.items():
            for fault in faults:
                if lowering in fault.lowerings:
                    yield {"model": model, "fault": fault.name, "lowering": lowering}
    for model in MODELS:
        for lowering in WAYS:
            for cache in ("growing", "fixed") if lowering != "portable" else ("growing",):
                for dtype in ("float32", "float16") if model == TWELVE else ("float32",):
                    kept = {"cache": cache, "dtype": dtype}
                    yield {"model": model, "fault": "", "lowering": lowering, **kept}


def title(options: dict[str, str]) -> str:
    facts = {**options, "fault": options["fault"] or "sound"}
    return ", ".join(("decoder", *facts.values()))

"""Thirteen rotary variants in six kinds of calls, against transformers, as
`python -m scripts.prove_variants`; with --write it writes docs/variants.md. Whole decoders of them
are in `decoders/variants.py`.

Each variant is a tiny model that transformers saves, loads again, and runs in eager attention in
float64. Its attention layers are read from the same folder, exported in every lowering that can
express them, and run in onnxruntime on the same hidden states.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModel, DynamicCache

from rope_export import open_session
from rope_export.bench.markdown import table_lines
from rope_export.checkpoints import Layer, open_model
from rope_export.lowerings import lowering_for, lowerings, refusal
from rope_export.spec import AttentionSpec
from tests.conformance.families.building import TinyModel, set_eager
from tests.conformance.families.cache import cache_name
from tests.conformance.families.calls import comparable, tables
from tests.conformance.families.capture import Capture, captures
from tests.conformance.families.compare import (
    FLOAT64,
    exported,
    module_errors,
    runtime_errors,
)
from tests.conformance.families.inputs import Mark

ORIGINAL = 64
"""The original context of every variant; those that stretch it do so four times."""
SCALED = {"factor": 4.0, "original_max_position_embeddings": ORIGINAL}
COMMON = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 128,
    "max_position_embeddings": ORIGINAL,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LONG = {"max_position_embeddings": 4 * ORIGINAL}
KINDS = ["sliding_attention", "full_attention"]


def rope(rope_type: str, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": rope_type, "rope_theta": 10_000.0, **more}}


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "default": ("llama", {}),
    "linear": ("llama", LONG | rope("linear", factor=4.0)),
    "dynamic": ("llama", rope("dynamic", factor=4.0)),
    "yarn": ("llama", LONG | rope("yarn", **SCALED)),
    "llama3": ("llama", LONG | rope("llama3", low_freq_factor=1.0, high_freq_factor=4.0, **SCALED)),
    "longrope": (
        "phi3",
        LONG
        | {"original_max_position_embeddings": ORIGINAL}
        | rope(
            "longrope",
            short_factor=[1 + 0.05 * pair for pair in range(8)],
            long_factor=[1.5 + 0.7 * pair for pair in range(8)],
        ),
    ),
    "partial": ("phi", rope("default", partial_rotary_factor=0.5)),
    "qk-norm": ("qwen3", {"head_dim": 16}),
    "sliding": ("mistral", {"sliding_window": 8, "head_dim": 16}),
    "softcap": (
        "gemma2",
        {
            "head_dim": 16,
            "attn_logit_softcapping": 2.0,
            "sliding_window": 8,
            "query_pre_attn_scalar": 16,
            "layer_types": KINDS,
        },
    ),
    "two bases": (
        "gemma3_text",
        {
            "head_dim": 16,
            "sliding_window": 8,
            "query_pre_attn_scalar": 16,
            "layer_types": KINDS,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
            },
        },
    ),
    "sinks": (
        "gpt_oss",
        LONG
        | {"head_dim": 16, "sliding_window": 8, "layer_types": KINDS}
        | {"num_local_experts": 2, "num_experts_per_tok": 2}
        | rope("yarn", truncate=False, **SCALED),
    ),
    "interleaved": ("cohere", {}),
}
"""A model type of each variant, and what it needs beside the common sizes."""

CASES: dict[str, tuple[tuple[int, ...], int]] = {
    "short": ((8,), 0),
    "decode": ((7, 1, 1), 0),
    "chunk on a cache": ((9, 5), 0),
    "long": ((160,), 0),
    "decode beyond the original context": ((60, 1, 1, 1, 1, 1, 1, 1, 1), 0),
    "left padding": ((9, 1), 3),
}
"""Tokens of each call, and padding slots on the left of the second row."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One variant, case, layer and lowering."""

    variant: str
    case: str
    layer: int
    lowering: str
    float64: float
    limit: float
    error: float
    tolerance: float

    @property
    def right(self) -> bool:
        return self.float64 <= self.limit and self.error <= self.tolerance


@dataclass(frozen=True, kw_only=True)
class Proof:
    """All cells of one variant."""

    variant: str
    cells: tuple[Cell, ...]


def limit(variant: str, case: str) -> float:
    """What the float64 module may be off by. Beyond the original context dynamic computes its base
    in the call, transformers in float32 and we in float64: four roundings, of an angle that grows
    with the position, are what its frequencies may differ by."""
    tokens = sum(CASES[case][0])
    if variant == "dynamic" and tokens > ORIGINAL:
        return 4 * 2**-24 * tokens
    return FLOAT64


class Calls:
    """Runs a model on drawn tokens, chunk by chunk on its own cache."""

    def __init__(self, chunks: tuple[int, ...], padded: int) -> None:
        self.chunks, self.padded = chunks, padded

    def __call__(self, model: nn.Module, mark: Mark) -> None:
        generator = torch.Generator().manual_seed(11)
        tokens = torch.randint(3, 128, (2, sum(self.chunks)), generator=generator)
        mask = torch.ones_like(tokens)
        mask[1, : self.padded] = 0
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        config: Any = model.config
        cache = DynamicCache(config=config)
        name = cache_name(model.forward)
        past = 0
        for count in self.chunks:
            total = past + count
            given = mask[:, :total]
            named = "decode" if past else "padded" if self.padded else "prefill"
            mark(named, given if self.padded else None, past)
            model(
                input_ids=tokens[:, past:total],
                attention_mask=given if self.padded else None,
                position_ids=positions[:, past:total],
                **{name: cache},
                use_cache=True,
            )
            past = total


def tiny(variant: str, kind: Any = AutoModel) -> TinyModel:
    """transformers' model of the variant, not built yet. kind: the auto class that has it."""
    model_type, more = VARIANTS[variant]
    config = AutoConfig.for_model(model_type, **{**COMMON, **more})
    set_eager(config)
    family = type(config).__module__.split(".")[-2]
    model_class: Any = kind._model_mapping[type(config)]
    return TinyModel(
        family=family,
        variant=variant,
        model_class=model_class,
        config=config,
        attention_classes=(),
    )


def prove(variant: str, every_lowering: bool = True) -> Proof:
    """Every case of the variant, in every layer that differs and every lowering that can express
    it, or in the lowering that "auto" takes."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return Proof(variant=variant, cells=tuple(_cells(variant, every_lowering)))


def _cells(variant: str, every_lowering: bool) -> Iterator[Cell]:
    with tempfile.TemporaryDirectory() as folder:
        model = tiny(variant)
        cases = {name: captures(model, Path(folder) / name, Calls(*CASES[name])) for name in CASES}
        seen: set[AttentionSpec] = set()
        for at, capture in enumerate(cases["short"]):
            source = open_model(capture.folder).layer(capture.layer_idx or 0)
            if source.spec in seen:
                continue
            seen.add(source.spec)
            layers = {name: every[at] for name, every in cases.items()}
            for lowering in _lowerings(source.spec, every_lowering):
                yield from _in(variant, lowering, layers, source)


def _lowerings(spec: AttentionSpec, every_lowering: bool) -> list[str]:
    if not every_lowering:
        return [lowering_for("auto", spec, "growing").name]
    return [x.name for x in lowerings().values() if refusal(x, spec, "growing") is None]


def _in(variant: str, lowering: str, layers: dict[str, Capture], source: Layer) -> Iterator[Cell]:
    """Every case of one layer in one lowering."""
    first, spec = layers["short"], source.spec
    weights = {name: tensor.double() for name, tensor in source.weights().items()}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        artifact = exported(first, spec, Path(folder), padding=True, lowering=lowering)
        with open_session(artifact, "onnxruntime") as session:
            for case, capture in layers.items():
                calls = [call for call in capture.calls if comparable(call)]
                _, exact = module_errors(spec, weights, calls, tables(capture, calls))
                error, tolerance = runtime_errors(spec, weights, calls, session)
                yield Cell(
                    variant=variant,
                    case=case,
                    layer=first.layer_idx or 0,
                    lowering=lowering,
                    float64=exact,
                    limit=limit(variant, case),
                    error=error,
                    tolerance=tolerance,
                )


def page(cells: list[Cell]) -> Iterator[str]:
    yield "# Thirteen variants in six kinds of calls"
    yield ""
    yield (
        f"Written by `python -m scripts.prove_variants --write` with transformers "
        f"{transformers.__version__}. Tiny models of transformers, run in eager attention in "
        f"float64, against the exported layers in onnxruntime in float32, in every lowering that "
        f"can express them: largest error over layers and lowerings, relative to the largest "
        f"output, and in brackets the share of the tolerance, which is twice eager PyTorch's own "
        f"error in float32. The float64 module is within {FLOAT64:g} in every cell, but for "
        f"dynamic beyond the original context, whose base transformers computes in float32: there "
        f"within the rounding of its angles. The original context is {ORIGINAL} tokens; 160 are "
        f"long."
    )
    yield ""
    cases = list(CASES)
    rows = []
    for variant in VARIANTS:
        row = [f"{variant} (`{VARIANTS[variant][0]}`)"]
        for case in cases:
            mine = [c for c in cells if (c.variant, c.case) == (variant, case)]
            worst = max(mine, key=lambda c: c.error / c.tolerance)
            word = "" if all(c.right for c in mine) else "**wrong** "
            row.append(f"{word}{worst.error:.0e} ({100 * worst.error / worst.tolerance:.0f} %)")
        rows.append(row)
    yield from table_lines(("variant", *cases), rows)


def in_one_line(proof: Proof) -> str:
    wrong = sum(not cell.right for cell in proof.cells)
    return f"{proof.variant}: {len(proof.cells)} comparisons, {wrong} wrong"

"""The harness itself: what it judges, what it passes, and that it raises no false alarm."""

import json
import os
import shutil
from contextlib import ExitStack
from itertools import cycle, product

import numpy as np
import pytest
import torch

from rope_export import Artifact, AttentionSpec, export, open_session, verify
from rope_export.arrays import to_numpy
from rope_export.parity import Report, frequencies
from rope_export.parity.bounds import Bounds
from rope_export.parity.cases import FAR, Case, regular_cases
from rope_export.parity.judge import Judge
from rope_export.parity.layer.reference import ReferenceLayer
from rope_export.parity.rows import judged
from rope_export.parity.subject import Request
from rope_export.parity.subjects.layer import LayerSubject
from tests.conftest import TINY, taking_turns

FIXED = [("fixed", False), ("fixed", True)]
KINDS = [("growing", False), ("growing", True), ("none", False), ("none", True)]


LOWERINGS = ["portable", "standard", "ort"]
DTYPES = ["float32", "float16"]
ARTIFACTS = taking_turns(product(LOWERINGS, KINDS, DTYPES))


@pytest.mark.parametrize(("lowering", "kind", "dtype"), ARTIFACTS)
def test_sound_artifacts_pass(tiny, lowering, kind, dtype) -> None:
    cache, padding = kind
    report = verify(tiny(lowering, dtype, cache, padding))
    assert report.passed
    assert report.weights == "proven"


@pytest.mark.parametrize(
    ("lowering", "padding", "dtype"),
    [
        ("standard", False, "float32"),
        ("standard", True, "float16"),
        ("ort", True, "float32"),
        ("ort", True, "float16"),
    ],
)
def test_sound_fixed_caches_pass(tiny, lowering, padding, dtype) -> None:
    assert verify(tiny(lowering, dtype, "fixed", padding)).passed


@pytest.mark.parametrize(
    ("lowering", "cache"), [("portable", "growing"), ("standard", "growing"), ("standard", "fixed")]
)
def test_bfloat16_passes_in_the_reference_evaluator(tiny, lowering, cache) -> None:
    report = verify(tiny(lowering, "bfloat16", cache, True))
    assert report.passed
    assert {row.runtime for row in report.rows} == {"file", "eager", "reference"}
    assert report.skipped[0]["runtime"] == "onnxruntime"


@pytest.mark.parametrize(("cache", "padding"), KINDS + FIXED)
def test_cases_cover_the_corners(cache, padding) -> None:
    found = list(regular_cases(cache, padding=padding, first_position=None))
    assert len(found) >= 24
    assert len({case.name for case in found}) == len(found)
    assert any(case.past == 0 for case in found)
    assert any((case.start or 0) + case.total == FAR for case in found)
    assert any(case.past for case in found) == (cache != "none")
    for corner in (lambda c: c.spare == 0, lambda c: len(set(c.lengths or ())) > 1):
        assert any(map(corner, found)) == (cache == "fixed")
    assert any(case.padding for case in found) == padding


@pytest.mark.usefixtures("short_prompts")
def test_json_has_the_agreed_keys(tiny) -> None:
    report = json.loads(json.dumps(verify(tiny()).to_json(), allow_nan=False))
    more = {
        "artifact",
        "cells",
        "problems",
        "causes",
        "located",
        "quantization_error",
        "numbers",
        "baseline",
        "left_out",
        "not_visible",
        "notes",
    }
    assert report.keys() == {"status", "weights", "reading", "rows", "skipped"} | more
    assert report["reading"].keys() == {"status", "against", "reason", "differences"}
    keys = [
        "case",
        "seed",
        "runtime",
        "output",
        "metric",
        "error",
        "eager_error",
        "tolerance",
        "status",
    ]
    assert list(report["rows"][0]) == keys


def row(error: float, eager: float, ceiling: float, floor: float, runtime: str = "x") -> str:
    (found,) = judged(
        case="c",
        seed=0,
        runtime=runtime,
        output="o",
        errors={"m": error},
        eager_errors={"m": eager},
        bounds=Bounds(ceilings={"m": ceiling}, floors={"m": floor}),
    )
    return found.status


def test_the_rule_of_a_row() -> None:
    assert row(error=2.0, eager=1.0, ceiling=9.0, floor=0.1) == "passed"
    assert row(error=2.1, eager=1.0, ceiling=9.0, floor=0.1) == "failed"
    assert row(error=2.0, eager=0.0, ceiling=9.0, floor=1.0) == "passed"
    assert row(error=0.0, eager=9.1, ceiling=9.0, floor=1.0) == "failed"
    assert row(error=float("nan"), eager=1.0, ceiling=9.0, floor=1.0) == "failed"
    assert row(error=0.0, eager=float("nan"), ceiling=9.0, floor=1.0) == "failed"
    assert row(error=9.1, eager=9.1, ceiling=9.0, floor=1.0, runtime="eager") == "failed"


def test_nothing_run_is_not_passed() -> None:
    assert Report(weights="proven").status == "nothing compared"
    assert not Report(weights="proven").passed


@pytest.mark.usefixtures("short_prompts")
def test_comparing_nothing_leaves_the_evidence_as_it_was(tiny, tmp_path) -> None:
    artifact = Artifact.open(shutil.copytree(tiny().path, tmp_path / "copy"))
    assert verify(artifact).passed
    before = artifact.evidence
    assert verify(artifact, runtimes=["tensorrt"]).status == "nothing compared"
    assert artifact.evidence == before


@pytest.mark.usefixtures("short_prompts")
def test_weights_are_unproven_where_the_source_is_gone(smollm2, tmp_path) -> None:
    source = shutil.copytree(smollm2, tmp_path / "source", copy_function=os.link)
    artifact = export(source, out=tmp_path / "layer")
    shutil.rmtree(source)
    report = verify(artifact)
    assert (report.status, report.weights) == ("passed", "unproven")
    assert verify(artifact, source=smollm2).weights == "proven"


SHAPES = {
    "tiny": {},
    "norms, two heads a group": {"model_type": "qwen3"},
    "softcap, window": {
        "model_type": "gemma2",
        "attn_logit_softcapping": 2.0,
        "query_pre_attn_scalar": 16,
        "sliding_window": 8,
    },
    "sinks, window": {"model_type": "gpt_oss", "sliding_window": 8, "attention_bias": True},
    "latent": {
        "model_type": "deepseek_v3",
        "num_key_value_heads": 4,
        "q_lora_rank": 32,
        "kv_lora_rank": 24,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8,
        "v_head_dim": 12,
    },
    "gate, dynamic": {
        "model_type": "qwen3_next",
        "layer_types": ["full_attention"] * 2,
        "max_position_embeddings": 64,
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
    },
    "full-width norms, clip": {"model_type": "olmoe", "clip_qkv": 0.5, "num_key_value_heads": 4},
    "SmolLM2": {
        "hidden_size": 576,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
    },
}
CALLS = [
    Case(batch=1, sequence=1),
    Case(batch=2, sequence=5, past=9, start=None),
    Case(batch=1, sequence=1, past=63),
]


DRAWS = [
    *[(25, shape, dtype) for shape, dtype in zip(SHAPES, cycle(DTYPES), strict=False)],
    *[pytest.param(1_000, *one, marks=pytest.mark.long) for one in product(SHAPES, DTYPES)],
]


@pytest.mark.parametrize(("draws", "shape", "dtype"), DRAWS)
def test_sound_draws_raise_no_alarm(draws, shape, dtype, exported) -> None:
    """Each draw has inputs of its own; both lowerings run them."""
    config, kind = {**TINY, **SHAPES[shape]}, {"cache": "growing", "padding": False}
    names = ["portable"] if "sinks" in shape else ["portable", "standard"]
    made = {name: exported(config, lowering=name, dtype=dtype, **kind) for name in names}
    artifact = made["portable"]
    report = Report(weights="proven")
    with ExitStack() as stack:
        sessions = {name: stack.enter_context(open_session(x)) for name, x in made.items()}
        subject = LayerSubject.of(artifact, Request())
        judge = Judge(subject=subject, sessions=sessions, report=report, seed=0)
        with torch.no_grad():
            for seed in range(draws):
                judge.seed = seed
                for case in CALLS:
                    judge.judge(judge.prepared(case))
    assert len(report.rows) >= draws * len(CALLS) * 6 * (1 + len(made))
    assert not [r for r in report.rows if r.status == "failed"]


def test_reference_agrees_with_transformers() -> None:
    """The mathematics of the reference, on its own, against transformers with a float64 softmax."""
    from transformers import LlamaConfig
    from transformers.models.llama import modeling_llama as llama

    config = LlamaConfig(**{k: v for k, v in TINY.items() if k != "model_type"})
    config._attn_implementation = "eager"
    theirs = llama.LlamaAttention(config, layer_idx=0).eval().double()
    spec = AttentionSpec.from_hf(config)
    layer = ReferenceLayer(
        spec,
        {name: to_numpy(w.detach()) for name, w in theirs.state_dict().items()},
        frequencies(spec),
    )
    hidden = torch.randn(2, 9, 64, dtype=torch.float64)
    positions = torch.randint(0, FAR, (2, 9))
    mask = torch.full((9, 9), -torch.inf, dtype=torch.float64).triu(1)[None, None]
    turn = llama.LlamaRotaryEmbedding(config)(hidden, positions)
    with torch.no_grad():
        expected, _ = theirs(hidden, position_embeddings=turn, attention_mask=mask)
    found = layer({"hidden_states": hidden.numpy(), "position_ids": positions.numpy()}).output
    # transformers has cos, sin and softmax in float32: 2**-24 each, on terms of order 1.
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=8 * 2**-24)


def test_a_spec_of_another_source_is_refused(tiny, tmp_path) -> None:
    from rope_export.errors import ArtifactError

    other = tmp_path / "other.json"
    other.write_text(json.dumps({**TINY, "num_key_value_heads": 4}))
    with pytest.raises(ArtifactError, match="specs differ"):
        verify(tiny(), source=other)

"""One line for what goes wrong everywhere for one reason: float16 that ends, calls that fail."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from rope_export import AttentionSpec, RopeExportError, export, verify
from rope_export.checkpoints.drawn import drawn_weights
from rope_export.parity import Report
from rope_export.parity.cases import Case
from rope_export.parity.report.lines import every_line
from rope_export.parity.report.tables import table
from rope_export.parity.rows import CALLS_FAILED
from rope_export.parity.subject import Revealing
from rope_export.parity.subjects import layer as layer_subject
from rope_export.runtimes.onnxruntime import OnnxRuntimeRunner
from tests.conftest import TINY

BIASED = {**TINY, "model_type": "qwen2"}
"""A layer with biases on queries and keys, which are what is large in published float16 models."""


@pytest.fixture
def few_cases(monkeypatch) -> None:
    """Two calls are enough to see what happens in each."""
    two = [Case(batch=1, sequence=3), Case(batch=2, sequence=1, past=7)]
    monkeypatch.setattr(layer_subject, "regular_cases", lambda *_, **__: two)
    monkeypatch.setattr(layer_subject, "layer_properties", lambda *_: [])
    monkeypatch.setattr(layer_subject, "revealing_calls", lambda *_: Revealing())


def shown(report: Report) -> str:
    """The report as it is printed."""
    console = Console(file=io.StringIO(), width=200)
    console.print(table(report, "artifact"))
    return console.file.getvalue()


def checkpoint(folder: Path, bias: float) -> Path:
    """Drawn weights, and biases of `bias` and its negative by turns."""
    spec = AttentionSpec.from_hf(BIASED)
    weights = drawn_weights(spec, 0)
    for name in ("q_proj.bias", "k_proj.bias"):
        weights[name] = torch.full_like(weights[name], bias)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(BIASED))
    path = "model.layers.0.self_attn."
    save_file({path + name: w for name, w in weights.items()}, folder / "model.safetensors")
    return folder


def test_scores_beyond_float16_are_one_line(tmp_path: Path, few_cases) -> None:
    """100 * 100 over 16 features is 160,000 before the scale of 1/4: PyTorch's eager attention has
    infinity there, the file, which scales first, a right answer."""
    source = checkpoint(tmp_path / "large", 100.0)
    report = verify(export(source, out=tmp_path / "out", dtype="float16"))
    assert report.status == "failed"
    (problem,) = report.problems
    assert "scores (largest 16" in problem
    assert "pass 65,504" in problem
    assert "`dtype`=bfloat16 or float32" in problem
    assert "onnxruntime" in problem.split("against float64:")[1]
    assert "not finite" not in problem.split("against float64:")[1]
    rows = report.to_json()["rows"]
    assert any(row["status"] == "failed" for row in rows)
    assert "FAILED" not in shown(report)
    assert problem in list(every_line(report))
    (located,) = report.located
    assert (located.runtime, located.tensor) == ("eager", "products")
    assert "float16 overflows" in located.diagnosis
    if report.reading.against is not None:  # transformers is installed
        assert report.reading.status == "unproven"
        assert "transformers' own output is not finite" in report.reading.reason


@pytest.mark.parametrize(("bias", "dtype"), [(1.0, "float16"), (100.0, "float32")])
def test_what_does_not_overflow_is_not_said_to(tmp_path, few_cases, bias, dtype) -> None:
    source = checkpoint(tmp_path / "source", bias)
    report = verify(export(source, out=tmp_path / "out", dtype=dtype))
    assert report.passed
    assert report.problems == []


def test_projections_beyond_float16_are_named(tmp_path: Path, few_cases) -> None:
    source = checkpoint(tmp_path / "huge", 65_504.0)
    report = verify(export(source, out=tmp_path / "out", dtype="float16"))
    (problem,) = report.problems
    assert "projections q" in problem


def test_a_failure_that_is_the_same_in_every_case_is_one_line(tiny, few_cases, monkeypatch) -> None:
    def fails(*_: object) -> dict[str, np.ndarray]:
        raise RopeExportError("onnxruntime failed: the device is on fire")

    monkeypatch.setattr(OnnxRuntimeRunner, "run", fails)
    monkeypatch.setattr(Report, "keep", lambda *_: None)
    report = verify(tiny())
    (problem,) = report.problems
    assert problem.endswith("1 more case on onnxruntime: onnxruntime failed: the device is on fire")
    assert len([row for row in report.rows if row.metric == CALLS_FAILED]) == 2
    assert shown(report).count("FAILED") == 1

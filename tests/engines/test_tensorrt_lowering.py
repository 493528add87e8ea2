"""The lowering for TensorRT: its numbers, proven on a CPU, and the operators it may use."""

import dataclasses
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from rope_export import Artifact, AttentionSpec, export, open_session, verify
from rope_export.bench import tune
from rope_export.errors import InputError
from rope_export.lowerings import lowering_for, lowerings, tensorrt
from rope_export.parity.bounds import UNIT_ROUNDOFF
from rope_export.parity.layer.chain import STORED
from rope_export.quantization import Quantization
from tests.conftest import TINY
from tests.unit.test_features import CAPPED, CHUNKED, GATED, LATENT, NORMED, SUNK

Make = Callable[..., Artifact]
DTYPES = ("float32", "float16", "bfloat16")
QUICK = {("float32", "growing", True), ("bfloat16", "none", False)}
ALL = [(d, c, p) for d in DTYPES for c in ("none", "growing", "fixed") for p in (False, True)]
INTERLEAVED = {"model_type": "cohere"}
FEATURES: list[tuple[dict[str, Any], str, str]] = [
    (SUNK, "fixed", "float16"),
]
MORE: list[tuple[dict[str, Any], str, str]] = [
    (config, cache, dtype)
    for config in (NORMED, SUNK, LATENT, GATED, CHUNKED, CAPPED, INTERLEAVED)
    for cache in ("growing", "fixed")
    for dtype in ("float32", "float16")
    if (config, cache, dtype) not in FEATURES and (config, cache) != (LATENT, "fixed")
]


@pytest.fixture
def make(exported: Make) -> Make:
    """An artifact for TensorRT of the tiny config with some keys changed."""
    return lambda config, **options: exported({**TINY, **config}, lowering="tensorrt", **options)


@pytest.mark.parametrize(
    ("dtype", "cache", "padding"),
    [
        pytest.param(
            *way, marks=() if way in QUICK else pytest.mark.long, id="-".join(map(str, way))
        )
        for way in ALL
    ],
)
def test_numbers_are_within_the_parity_tolerance(
    tiny, dtype: str, cache: str, padding: bool
) -> None:
    """bfloat16 in onnx's own evaluator: onnxruntime has no such kernels on the CPU."""
    report = verify(tiny("tensorrt", dtype, cache, padding))
    assert report.passed, [row for row in report.rows if row.status == "failed"][:3]
    ran = {row.runtime for row in report.rows} - {"file", "eager"}
    assert ran == {"reference" if dtype == "bfloat16" else "onnxruntime"}


@pytest.mark.usefixtures("short_prompts")
@pytest.mark.parametrize(
    ("config", "cache", "dtype"),
    FEATURES + [pytest.param(*way, marks=pytest.mark.long) for way in MORE],
    ids=lambda x: x["model_type"] if isinstance(x, dict) else None,
)
def test_features_are_within_the_parity_tolerance(make: Make, config, cache, dtype) -> None:
    assert verify(make(config, cache=cache, dtype=dtype, padding=True)).passed


@pytest.mark.long
@pytest.mark.parametrize("cache", ["growing", "fixed"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_real_weights_are_within_the_parity_tolerance(smollm2, tmp_path, dtype, cache) -> None:
    report = verify(
        export(smollm2, out=tmp_path / "layer", lowering="tensorrt", dtype=dtype, cache=cache)
    )
    assert report.passed
    assert report.weights == "proven"


@pytest.mark.parametrize(("cache", "padding"), [("growing", False), ("fixed", True)])
def test_the_file_has_only_what_tensorrt_gets_right(tiny, cache: str, padding: bool) -> None:
    graph = onnx.load(str(tiny("tensorrt", "float16", cache, padding).model)).graph
    count = Counter(node.op_type for node in graph.node)
    assert (count["RotaryEmbedding"], count["Attention"], count["Softmax"]) == (2, 1, 0)
    assert count["TensorScatter"] == (2 if cache == "fixed" else 0)
    (attention,) = (node for node in graph.node if node.op_type == "Attention")
    assert len(attention.input) == 4, "query, key, value and mask"
    assert {attribute.name for attribute in attention.attribute} == {"scale"}
    makers = {node.output[0]: node.op_type for node in graph.node}
    turning = [node for node in graph.node if node.op_type == "RotaryEmbedding"]
    assert {makers[name] for node in turning for name in node.input[1:3]} == {"Cast"}


@pytest.mark.parametrize("dtype", DTYPES)
def test_hidden_slots_are_finite_with_any_score_added(tiny, dtype: str) -> None:
    """Nor does a change of base to 2, which kernels make, overflow."""
    spec = AttentionSpec.from_json(tiny("tensorrt", dtype, "growing").manifest.spec)
    mask = tensorrt._bias(torch.tensor([True, False]), spec).double()
    assert mask[0] == 0
    limits = torch.finfo(getattr(torch, dtype))
    assert mask[1] * np.log2(np.e) > limits.min
    assert mask[1] < -16_000
    graph = onnx.load(str(tiny("tensorrt", dtype, "growing").model)).graph
    numbers = [
        numpy_helper.to_array(tensor).astype(np.float64).min()
        for tensor in graph.initializer
        if "weight" not in tensor.name and tensor.data_type != onnx.TensorProto.INT64
    ]
    assert min(numbers) >= limits.min / 2


def test_a_token_that_sees_nothing_gives_zero(tiny) -> None:
    """And no NaN, beside a row that sees everything."""
    inputs = {
        "hidden_states": np.ones((2, 3, 64), np.float16),
        "position_ids": np.tile(np.arange(3), (2, 1)),
        "past_key": np.zeros((2, 2, 0, 16), np.float16),
        "past_value": np.zeros((2, 2, 0, 16), np.float16),
        "attention_mask": np.array([[0, 0, 1], [1, 1, 1]]),
    }
    with open_session(tiny("tensorrt", "float16", "growing", True)) as session:
        output = session.run(inputs)["attention_output"]
    assert np.all(output[0, :2] == 0)
    assert np.all(np.isfinite(output))
    assert np.any(output[0, 2] != 0)


def test_a_long_softmax_in_bfloat16_is_summed_in_float32(tiny) -> None:
    """By onnx's own evaluator, in which thousands of bfloat16 weights would add up to 256."""
    stream = torch.Generator().manual_seed(0)
    cache = torch.randn(2, 1, 2, 2_000, 16, generator=stream).bfloat16()
    inputs = {
        "hidden_states": torch.randn(1, 1, 64, generator=stream).bfloat16(),
        "position_ids": torch.tensor([[2_000]]),
        "past_key": cache[0],
        "past_value": cache[1] + 1,
    }
    artifact = tiny("tensorrt", "bfloat16", "growing")
    found = []
    for runtime in ("reference", "eager"):
        with open_session(artifact, runtime) as session:
            found.append(session.run(inputs)["attention_output"].double())
    error = (found[0] - found[1]).norm() / found[1].norm()
    assert error < STORED * UNIT_ROUNDOFF["bfloat16"]


def test_auto_and_tuning_leave_it_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is for engines; onnxruntime has better for itself."""
    for config in (NORMED, SUNK):  # sinks are beyond the lowering that comes first otherwise
        for dtype in ("float32", "float16"):
            spec = dataclasses.replace(AttentionSpec.from_hf({**TINY, **config}), dtype=dtype)
            for cache in ("none", "growing", "fixed"):
                assert not lowering_for("auto", spec, cache).engine
    tried: list[str] = []
    monkeypatch.setattr(tune, "export", lambda source, out, lowering: tried.append(lowering))
    tune._candidates("source", tmp_path, {}, lambda step, done: None)
    assert tried == [name for name in lowerings() if name != "tensorrt"]


def test_what_it_cannot_say_is_refused_by_name(make: Make) -> None:
    with pytest.raises(InputError, match=r"cache 'fixed' of a latent.*use cache 'growing'"):
        make(LATENT, cache="fixed")
    spec = AttentionSpec.from_hf({**TINY, **GATED})
    with pytest.raises(InputError, match=r"'tensorrt' cannot have weights in 4 bits"):
        lowering_for("tensorrt", spec, "growing", Quantization(bits=4))

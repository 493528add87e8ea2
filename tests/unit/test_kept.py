"""What MatMulNBits keeps of quantized sources bit for bit, what it cannot hold, and the proof."""

import dataclasses
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from gguf.quants import quantize

from rope_export import export, verify
from rope_export.artifacts.deployed import file_weights
from rope_export.checkpoints import open_model
from rope_export.checkpoints.gguf.blocks import integers_of
from rope_export.checkpoints.integers import Integers, evenly
from rope_export.checkpoints.kept import packed_integers
from rope_export.checkpoints.stored import store
from rope_export.cli.export import summary
from rope_export.exporter import pipeline
from rope_export.quantization import Packed, Quantization, unpack
from tests.support.quantized_files import awq, gptq
from tests.unit.test_gguf import written

pytestmark = pytest.mark.usefixtures("short_prompts")


def drawn(
    bits: int, inputs: int, size: int, *, zeros: Any = None, dtype: Any = "float16"
) -> Integers:
    """size: inputs that share a scale, -1 for all. zeros: one number, or drawn about the middle."""
    stream = np.random.default_rng([bits, inputs, size % 1000])
    groups = 1 if size == -1 else -(-inputs // size)
    shape = (24, groups)
    about = np.clip(stream.normal(2 ** (bits - 1), 1, shape), 0, 2**bits - 1)
    scales = torch.from_numpy(stream.uniform(0.01, 0.02, shape).astype(np.float16))
    return Integers(
        bits=bits,
        values=torch.from_numpy(stream.integers(0, 2**bits, (24, inputs), np.uint8)),
        scales=scales.to(getattr(torch, dtype)),
        zeros=torch.from_numpy(about.astype(np.int32) if zeros is None else np.full(shape, zeros)),
        groups=evenly(inputs, groups, size),
    )


def ggml(kind: str, inputs: int = 256) -> Integers:
    """Blocks that the gguf package quantizes, or K blocks of drawn bytes, which it only reads."""
    own = getattr(gguf.GGMLQuantizationType, kind)
    stream = np.random.default_rng(3)
    if kind.endswith("_K"):
        data = stream.integers(0, 256, (24, gguf.GGML_QUANT_SIZES[own][1]), dtype=np.uint8)
        data[:, 4:16] |= 1 if kind == "Q4_K" else 0  # no scale is 0
        at = 208 if kind == "Q6_K" else 0
        halves = stream.uniform(1e-4, 2e-4, (24, 2)).astype(np.float16)[:, : 1 if at else 2]
        data[:, at : at + halves.nbytes // 24] = halves.view(np.uint8)
    else:
        data = quantize(stream.standard_normal((24, inputs), np.float32), own)
    found = integers_of(data, kind)
    assert found is not None
    return found


def multiplied(stored: Packed, bits: int, inputs: int) -> np.ndarray:
    """The operator's own product with the identity: the weight (out, in) that it works with."""
    tensors = {"packed": stored.packed, "scales": stored.scales}
    tensors |= {} if stored.zeros is None else {"zeros": stored.zeros}
    node = onnx.helper.make_node(
        "MatMulNBits", ["x", *tensors], ["y"], domain="com.microsoft", K=inputs, N=24
    )
    how = {"bits": bits, "block_size": stored.block_size(bits), "accuracy_level": 1}
    node.attribute.extend(onnx.helper.make_attribute(k, v) for k, v in how.items())
    kind = onnx.helper.np_dtype_to_tensor_dtype(stored.scales.dtype)
    graph = onnx.helper.make_graph(
        [node],
        "product",
        [onnx.helper.make_tensor_value_info("x", kind, [inputs, inputs])],
        [onnx.helper.make_tensor_value_info("y", kind, [inputs, 24])],
        [onnx.numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    opsets = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (found,) = session.run(None, {"x": np.eye(inputs, dtype=stored.scales.dtype)})
    return found.T


HELD: dict[str, tuple[Any, int, int | None]] = {
    "4 bits, zero points": (lambda: drawn(4, 96, 32), 4, 32),
    "4 bits in 8": (lambda: drawn(4, 96, 32), 8, 32),
    "2 bits in 4": (lambda: drawn(2, 96, 16), 4, 16),
    "3 bits in 4": (lambda: drawn(3, 96, 32, zeros=4), 4, 32),
    "8 bits, zero points": (lambda: drawn(8, 96, 32), 8, 32),
    "8 bits, one zero": (lambda: drawn(8, 96, 32, zeros=128), 8, 32),
    "part of a block": (lambda: drawn(4, 72, 32), 4, 32),
    "odd number of blocks": (lambda: drawn(4, 80, 16), 4, 16),
    "groups of 48": (lambda: drawn(4, 96, 48), 4, 16),
    "groups of 256": (lambda: drawn(4, 512, 256), 4, 128),
    "one group": (lambda: drawn(4, 72, -1), 4, 64),
    "Q4_0": (lambda: ggml("Q4_0"), 4, 32),
    "Q4_0 in 8": (lambda: ggml("Q4_0"), 8, 32),
    "Q5_0": (lambda: ggml("Q5_0"), 8, 32),
    "Q8_0": (lambda: ggml("Q8_0"), 8, 32),
    "Q6_K": (lambda: ggml("Q6_K"), 8, 16),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("name", HELD)
def test_the_operator_multiplies_with_the_sources_own_weight(name, dtype) -> None:
    make, bits, block = HELD[name]
    source = make()
    stored = packed_integers(source, bits, dtype)
    if name == "Q6_K" and dtype == torch.float16:
        assert stored is None  # a product of two scales has more digits than float16
        return
    assert stored is not None
    assert (stored.stored, stored.block_size(bits)) == ("kept", block)
    wanted = source.weight().to(dtype).numpy()
    inputs = wanted.shape[1]
    np.testing.assert_array_equal(unpack(stored, Quantization(bits=bits), inputs), wanted)
    np.testing.assert_array_equal(multiplied(stored, bits, inputs), wanted)


MINIMUMS = [("Q4_1", 4), ("Q4_1", 8), ("Q5_1", 8), ("Q4_K", 4), ("Q5_K", 8)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("kind", "bits"), MINIMUMS)
def test_a_minimum_becomes_a_zero_point_and_an_offset(kind, bits, dtype) -> None:
    """Their sum is the minimum, but for what float16 or a product of scales does not hold."""
    source = ggml(kind)
    stored = packed_integers(source, bits, dtype)
    if kind.endswith("_K") and dtype == torch.float16:
        assert stored is None
        return
    assert stored is not None
    assert stored.offsets is not None
    assert source.minimums is not None
    inputs = source.values.shape[1]
    found = unpack(stored, Quantization(bits=bits), inputs)
    wanted = source.weight().to(dtype).numpy()
    if stored.stored == "kept":
        np.testing.assert_array_equal(found, wanted)
    assert kind.endswith("_K") or dtype == torch.float16 or stored.stored == "kept"
    # The offset is half a step at most where a zero point reaches the minimum, and rounded once.
    step, least = source.scales.double().abs().numpy(), source.minimums.double().numpy()
    below, most = -least * np.sign(source.scales.numpy()), (2**source.bits - 1) * step
    reached = (step > 0) & (below >= 0) & (below <= most)
    roundoff = 2.0 ** (-24 if dtype == torch.float32 else -11)
    assert reached.mean() > 0.1
    half = step / 2 * (1 + roundoff)
    assert (np.abs(stored.offsets.T.astype(float))[reached] <= half[reached]).all()
    bound = np.abs(least)[:, source.groups.numpy()] + 2 * np.abs(wanted.astype(float))
    assert (np.abs(found.astype(float) - wanted) <= roundoff * bound + 2**-25).all()
    bare = dataclasses.replace(stored, offsets=None)
    product = multiplied(bare, bits, inputs)
    np.testing.assert_array_equal(unpack(bare, Quantization(bits=bits), inputs), product)


def test_a_minimum_of_whole_steps_is_kept_bit_for_bit() -> None:
    source = ggml("Q4_1")
    steps = torch.randint(0, 16, source.scales.shape, generator=torch.Generator().manual_seed(0))
    source = dataclasses.replace(source, minimums=-(source.scales.float() * steps))
    for bits in (4, 8):
        stored = packed_integers(source, bits, torch.float32)
        assert stored is not None
        assert stored.stored == "kept"
        wanted = source.weight().numpy()
        np.testing.assert_array_equal(multiplied(stored, bits, 256), wanted)


def test_an_offset_that_the_dtype_does_not_hold_is_told() -> None:
    source = ggml("Q4_1")
    assert source.minimums is not None
    finer = dataclasses.replace(source, minimums=source.minimums.float() * (1 + 2**-12))
    for dtype, told in ((torch.float16, "kept, offsets rounded"), (torch.float32, "kept")):
        stored = packed_integers(finer, 4, dtype)
        assert stored is not None
        assert stored.stored == told


NOT_HELD: dict[str, tuple[Any, int, torch.dtype]] = {
    "act-order": (lambda: _shuffled(drawn(4, 96, 32)), 4, torch.float32),
    "groups of 24": (lambda: drawn(4, 96, 24), 4, torch.float32),
    "more bits": (lambda: drawn(8, 96, 32), 4, torch.float32),
    "scales beyond the dtype": (
        lambda: _scaled(drawn(4, 96, 32, dtype="float32"), 1.001),
        4,
        torch.float16,
    ),
    "a zero beyond the range": (lambda: drawn(4, 96, 32, zeros=-3), 4, torch.float32),
}


def _shuffled(source: Integers) -> Integers:
    order = torch.randperm(len(source.groups), generator=torch.Generator().manual_seed(0))
    return dataclasses.replace(source, groups=source.groups[order])


def _scaled(source: Integers, factor: float) -> Integers:
    return dataclasses.replace(source, scales=source.scales * factor)


@pytest.mark.parametrize("name", NOT_HELD)
def test_what_the_operator_cannot_hold_is_quantized_anew(name) -> None:
    make, bits, dtype = NOT_HELD[name]
    source = make()
    assert packed_integers(source, bits, dtype) is None
    weight = {"q_proj.weight": source.weight().to(dtype)}
    how = Quantization(bits=bits)
    anew = store(weight, {"q_proj.weight": source}, how)["q_proj.weight"]
    alone = store(weight, {}, how)["q_proj.weight"]
    assert (anew.stored, alone.stored) == ("requantized", "quantized")
    np.testing.assert_array_equal(anew.packed, alone.packed)


EXPORTS = [
    ("awq", {"weights": "int4", "cache": "fixed"}, "kept"),
    ("Q4_1", {"weights": "int4"}, "kept"),
    *(
        pytest.param(*one, marks=pytest.mark.long)
        for one in (
            ("gptq", {"weights": "int4"}, "kept"),
            ("gptq", {"weights": "int8", "dtype": "float16"}, "kept"),
            ("gptq-8", {"weights": "int8", "cache": "fixed", "padding": True}, "kept"),
            ("gptq-8", {"weights": "int4"}, "requantized"),
            ("act-order", {"weights": "int4"}, "requantized"),
            ("awq", {"weights": "int4", "dtype": "float16", "accuracy_level": 1}, "kept"),
            ("Q4_0", {"weights": "int4"}, "kept"),
            ("Q8_0", {"weights": "int8", "dtype": "float16"}, "kept"),
            ("Q4_1", {"weights": "int4", "dtype": "float16", "cache": "fixed"}, "kept"),
            ("Q5_1", {"weights": "int8"}, "kept"),
            ("Q5_1", {"weights": "int4"}, "requantized"),
        )
    ),
]


def _source(name: str, folder: Path) -> Path:
    made: dict[str, Any] = {
        "awq": awq,
        "gptq": gptq,
        "gptq-8": lambda: gptq(8),
        "act-order": lambda: gptq(act_order=True),
    }
    if name in made:
        return made[name]().save(folder / "checkpoint")
    written(folder / "tiny.gguf", kind=name)
    return folder / "tiny.gguf"


@pytest.mark.parametrize(("name", "options", "stored"), EXPORTS, ids=str)
def test_artifacts_of_quantized_sources_pass(name, options, stored, tmp_path) -> None:
    artifact = export(_source(name, tmp_path), out=tmp_path / "x", **options)
    for facts in artifact.manifest.weights.values():
        assert facts.stored == stored
        assert facts.source_form in (name.partition("-")[0], "gptq", f"gguf {name}")
    report = verify(artifact)
    assert (report.status, report.weights) == ("passed", "proven")
    assert report.quantization_error is not None
    loss = report.quantization_error["relative L2"]
    if stored == "kept":
        assert loss == 0
    else:
        # No more is lost than by quantizing the same weights of a plain checkpoint.
        assert loss > 1e-3
        held, how = file_weights(artifact), Quantization(bits=4)
        weights = open_model(artifact.evidence["source"]).layer(0).weights()
        for weight in artifact.manifest.weights:
            alone = store({weight: weights[weight]}, {}, how)[weight]
            wanted = unpack(alone, how, weights[weight].shape[1])
            np.testing.assert_array_equal(held[weight], wanted)


@pytest.mark.long
def test_scores_so_large_that_another_slot_wins_raise_no_alarm(tmp_path, monkeypatch) -> None:
    """Rounding activations to int8 moves such scores by more than slots are apart."""
    whole = quantize
    monkeypatch.setattr("tests.unit.test_gguf.quantize", lambda x, kind: whole(x * 16, kind))
    written(tmp_path / "tiny.gguf", kind="Q4_1")
    artifact = export(tmp_path / "tiny.gguf", out=tmp_path / "x", weights="int4", cache="none")
    assert verify(artifact).status == "passed"


def test_a_zero_point_off_by_one_fails_the_proof(tmp_path, monkeypatch) -> None:
    """The file then agrees with itself, but not with the integers of its source."""

    def shifted(weights, integers, how):
        stored = store(weights, integers, how)
        one = stored["k_proj.weight"]
        assert one.zeros is not None
        zeros = one.zeros.copy()
        zeros[5, 0] += 1
        return stored | {"k_proj.weight": dataclasses.replace(one, zeros=zeros)}

    source = awq().save(tmp_path / "checkpoint")
    monkeypatch.setattr(pipeline, "store", shifted)
    artifact = export(source, out=tmp_path / "x", weights="int4", cache="none")
    monkeypatch.undo()
    report = verify(artifact)
    failed = {(row.runtime, row.output) for row in report.rows if row.status == "failed"}
    assert ("file", "k_proj.weight") in failed
    assert not failed & {("file", f"{name}_proj.weight") for name in "qvo"}


def test_an_artifact_tells_what_is_kept(tmp_path) -> None:
    """The scheme leaves one projection alone, which is then quantized here."""
    source = gptq(8, plain=("v_proj",), dynamic={"-:.*v_proj": {}}).save(tmp_path / "checkpoint")
    artifact = export(source, out=tmp_path / "x", weights="int8", cache="none")
    assert "weights int8 (3 of 4 kept as the source has them)" in summary(artifact)
    weights = artifact.manifest.weights
    assert {name[0]: facts.stored for name, facts in weights.items()} == {
        "q": "kept",
        "k": "kept",
        "v": "quantized",
        "o": "kept",
    }
    assert weights["v_proj.weight"].source_form is None

"""`verify` on files that others made whose weights are quantized, or whose caches are fixed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from rope_export import export, export_decoder, verify
from rope_export.errors import UnavailableError
from rope_export.parity import Report
from rope_export.parity.onnx_file.deployed import CHANNEL, STEPS
from tests.conformance.exporters import samples
from tests.conformance.exporters.checkpoints import save

CONFIG = samples.config("default")
CAPACITY = 200


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config with heads of 16 features, of which onnxruntime's operator takes multiples."""
    path = tmp_path_factory.mktemp("wide") / "config.json"
    facts = json.loads(CONFIG.read_text(encoding="utf-8"))
    path.write_text(json.dumps(facts | {"head_dim": 16}), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def fixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder with fixed caches, whose lengths are an input that may be left out."""
    folder = tmp_path_factory.mktemp("fixed")
    export_decoder(CONFIG, out=folder / "out", lowering="standard", cache="fixed", logits="all")
    return folder / "out" / "model.onnx"


@pytest.fixture
def altered(tmp_path: Path) -> Callable[..., Path]:
    """A copy of a file with a change to its graph."""

    def make(path: Path, change: Callable[[Any], None]) -> Path:
        model = onnx.load(str(path))
        change(model.graph)
        onnx.save(model, str(tmp_path / "model.onnx"))
        return tmp_path / "model.onnx"

    return make


def ran(report: Report, runtime: str = "onnxruntime") -> set[str]:
    return {row.case.partition(",")[0] for row in report.rows if row.runtime == runtime}


@pytest.mark.long
def test_fixed_caches_by_their_mask(wide: Path, tmp_path: Path) -> None:
    """Without lengths every row has as many slots as the mask covers before the call."""
    artifact = export_decoder(wide, out=tmp_path / "out", lowering="ort", cache="fixed")
    report = verify(artifact.path / "model.onnx", source=wide)
    assert report.passed, report.problems
    assert {"decode", "chunk of two rows", "left padding", "greedy"} <= ran(report)
    reason = "not supported by its inputs, the rows of its caches have one length."
    assert f"unequal rows: {reason}" in report.left_out


def by_row(graph: Any) -> None:
    """Lengths are an input of another exporter's name, and the caches have one size."""
    initializer = next(x for x in graph.initializer if x.name == "cache_lengths")
    graph.initializer.remove(initializer)
    for value in (*graph.input, *graph.node):
        if getattr(value, "name", "") == "cache_lengths":
            value.name = "write_indices"
        for at, name in enumerate(getattr(value, "input", ())):
            if name == "cache_lengths":
                value.input[at] = "write_indices"
    for value in (*graph.input, *graph.output):
        if value.name.startswith(("past_key_values", "present")):
            value.type.tensor_type.shape.dim[2].dim_value = CAPACITY


def test_fixed_caches_of_one_size_with_rows_of_their_own(
    fixed: Path, altered: Callable[..., Path]
) -> None:
    report = verify(altered(fixed, by_row), source=CONFIG)
    assert report.passed, report.problems
    assert {"unequal rows", "left padding", "long", "greedy"} <= ran(report)
    assert not [x for x in report.left_out if "not supported" in x]


def test_the_longest_text_may_fill_fixed_caches(fixed: Path, altered: Callable[..., Path]) -> None:
    def small(graph: Any) -> None:
        by_row(graph)
        for value in (*graph.input, *graph.output):
            if value.name.startswith(("past_key_values", "present")):
                value.type.tensor_type.shape.dim[2].dim_value = 20

    report = verify(altered(fixed, small), source=CONFIG, cases=["long", "decode"])
    assert report.passed, report.problems
    assert ran(report) == {"long", "decode"}
    assert not any("outside" in line for line in report.left_out)


def test_texts_that_another_file_has_no_inputs_for_are_left_out(
    fixed: Path, tmp_path: Path
) -> None:
    """Its caches grow, so that its rows are of one length."""
    options: dict[str, Any] = {"lowering": "standard", "cache": "growing", "logits": "all"}
    growing = export_decoder(CONFIG, out=tmp_path / "growing", **options).path / "model.onnx"
    report = verify(fixed.parent, against=growing, cases=["unequal rows", "two rows"])
    assert report.passed, report.problems
    name = f"onnxruntime of {growing}"
    assert ran(report, name) == {"two rows"}
    assert f"texts outside of the profiles of {name}: 1." in report.left_out


def test_a_cache_that_is_written_one_slot_late_fails(
    fixed: Path, altered: Callable[..., Path]
) -> None:
    def late(graph: Any) -> None:
        by_row(graph)
        one = numpy_helper.from_array(np.ones(1, np.int64), "one")
        graph.initializer.append(one)
        scatters = [x for x in graph.node if x.op_type == "TensorScatter"]
        at = list(graph.node).index(scatters[0])
        graph.node.insert(at, helper.make_node("Add", [scatters[0].input[2], "one"], ["late"]))
        scatters[0].input[2] = "late"

    report = verify(altered(fixed, late), source=CONFIG, cases=["decode"])
    assert report.status == "failed"


def test_shared_buffers_of_another_exporter_are_judged_too(tmp_path: Path) -> None:
    """onnxruntime-genai's file, with the scaling of positions that it leaves out."""
    path, spec = samples.unpack("linear", tmp_path), samples.config("linear")
    report = verify(path, spec=spec)
    buffers = "onnxruntime, shared buffers"
    assert {"decode", "chunk", "left padding"} <= ran(report, buffers)
    for case in {row.case for row in report.rows if row.output == "logits"}:
        statuses = {
            name: {x.status for x in report.rows if (x.case, x.runtime) == (case, name)}
            for name in ("onnxruntime", buffers)
        }
        assert statuses["onnxruntime"] == statuses[buffers], case
    assert {x["runtime"] for x in report.causes} == {"onnxruntime"}


def test_a_fixed_cache_of_another_exporter(tmp_path: Path) -> None:
    """mobius' static cache: flat, with an index for each row, and no mask."""
    report = verify(samples.unpack("static", tmp_path), spec=samples.config("static"))
    assert report.passed, report.problems
    assert {"decode", "chunk of two rows", "unequal rows", "long", "greedy"} <= ran(report)
    reason = "not supported by its inputs, there is no attention_mask."
    assert f"left padding: {reason}" in report.left_out


def test_the_cause_of_a_fault_in_unequal_rows_is_named(tmp_path: Path) -> None:
    """Each row is run alone as well, where it has fewer tokens than beside the others."""
    facts = json.loads(samples.config("static").read_text(encoding="utf-8"))
    facts["rope_parameters"] |= {"rope_type": "linear", "factor": 4.0}
    spec = tmp_path / "config.json"
    spec.write_text(json.dumps(facts), encoding="utf-8")
    report = verify(samples.unpack("static", tmp_path), spec=spec, cases=["unequal rows"])
    assert {(x["cause"], x["texts"]) for x in report.causes} == {("rope scaling", "unequal rows")}


def test_int4_weights_of_another_exporter(tmp_path: Path) -> None:
    """onnxruntime-genai's, which round activations to int8 and do not look at padding."""
    report = verify(samples.unpack("int4", tmp_path), spec=samples.config("int4"))
    assert {(x["cause"], x["texts"]) for x in report.causes} == {("padding", "left padding")}
    assert any("rounds activations to int8" in line for line in report.left_out)


@pytest.mark.parametrize("form", [pytest.param("QOperator", marks=pytest.mark.long), "QDQ"])
def test_a_file_that_onnxruntime_has_quantized(tmp_path: Path, form: str) -> None:
    """A decoder by torch's exporter, its products with constants quantized afterwards: their names
    tell nothing, and only the source's values which weight is which."""
    from onnxruntime.quantization import QuantFormat
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    path = samples.unpack("default", tmp_path)
    quantizer = MatMulNBitsQuantizer(
        onnx.load(str(path)), block_size=16, is_symmetric=False, quant_format=QuantFormat[form]
    )
    quantizer.process()
    quantizer.model.save_model_to_file(str(path))
    operators = {node.op_type for node in onnx.load(str(path)).graph.node}
    assert operators & {"MatMulNBits", "DequantizeLinear"}
    with pytest.raises(UnavailableError, match="8 weights are not found by name and shape"):
        verify(path, spec=CONFIG)
    source = save("default", tmp_path / "source", **samples.SIZES)
    report = verify(path, source=source)
    assert report.passed, report.problems
    assert sum(row.case == "weights in the file" for row in report.rows) == 2 * 8
    int8 = [line for line in report.left_out if "rounds activations to int8" in line]
    assert len(int8) == (form == "QDQ")


@pytest.fixture(scope="module")
def int4(wide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder with quantized weights, whose kernels round activations to int8."""
    folder = tmp_path_factory.mktemp("int4")
    options: dict[str, Any] = {"weights": "int4", "block_size": 16, "lowering": "ort"}
    export_decoder(wide, out=folder / "out", cache="growing", logits="all", **options)
    return folder / "out" / "model.onnx"


def test_quantized_weights_of_a_source(int4: Path, wide: Path) -> None:
    report = verify(int4, source=wide)
    assert report.passed, report.problems
    distances = [row for row in report.rows if row.case == "weights in the file"]
    assert {row.output.rpartition(".")[0] for row in distances} >= {
        "model.layers.0.self_attn.q_proj",
        "model.layers.0.mlp.down_proj",
    }
    # Between two levels half a step is the most, and 1 / sqrt(12) of one what is expected.
    assert all(0.2 < row.error < 0.5 for row in distances if row.metric == STEPS)
    assert all(row.error == 0 for row in distances if row.metric == CHANNEL)
    assert report.quantization_error is not None
    assert 0.01 < report.quantization_error["weights"] < 0.2
    assert any("rounds activations to int8" in line for line in report.left_out)
    assert ran(report) >= {"decode", "left padding", "greedy"}


def test_quantized_weights_without_a_source(int4: Path, wide: Path) -> None:
    report = verify(int4, spec=wide)
    assert (report.passed, report.weights) == (True, "unproven")
    assert report.quantization_error is None


def test_quantized_weights_of_another_module_are_not_the_sources(
    int4: Path, wide: Path, altered: Callable[..., Path]
) -> None:
    def exchange(graph: Any) -> None:
        """The levels of two weights of one shape."""
        packed = {x.input[1] for x in graph.node if x.op_type == "MatMulNBits"}
        tensors = [x for x in graph.initializer if x.name in packed]
        first, second = next(
            (x, y)
            for at, x in enumerate(tensors)
            for y in tensors[at + 1 :]
            if x.dims == y.dims and x.raw_data != y.raw_data
        )
        first.raw_data, second.raw_data = second.raw_data, first.raw_data

    report = verify(altered(int4, exchange), source=wide)
    assert report.status == "failed"
    assert any("that are not the source's: 3" in line for line in report.problems)


@pytest.mark.parametrize("quantized", [pytest.param(False, marks=pytest.mark.long), True])
def test_a_layer(tmp_path: Path, wide: Path, quantized: bool) -> None:
    """A fixed cache and int4 weights; kernels that round to int8 have bounds of their own."""
    options: dict[str, Any] = {"weights": "int4", "block_size": 16} if quantized else {}
    artifact = export(wide, out=tmp_path / "layer", cache="fixed", lowering="ort", **options)
    path = shutil.copy(artifact.path / "model.onnx", tmp_path / "layer.onnx")
    report = verify(path, source=wide, layer=0)
    assert report.passed, report.problems
    assert (report.quantization_error is not None) == quantized
    assert any(row.case.startswith("3x1, past 0, 200, 57") for row in report.rows)

"""`python -m scripts.benchmarks.peers`: cutting, judging, timing and the page."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from rope_export import Artifact
from scripts.benchmarks.peers import __main__ as program
from scripts.benchmarks.peers import checkpoint, environments, exports, run
from scripts.benchmarks.peers.contenders import Growing, OursGrowing, OursStream
from scripts.benchmarks.peers.environments import Environment, NotInstalledError
from scripts.benchmarks.peers.exports import Exporter, ExportError
from scripts.benchmarks.peers.layer import Layer, LayerError, cut, nodes, read
from scripts.benchmarks.peers.measure import CASES, SHAPES, Latency, Reference, Shape, latencies
from scripts.benchmarks.peers.page import Export, Facts, Results, Row, error_cell, page_lines

SIZES = checkpoint.Sizes(hidden=64, heads=4, kv_heads=2, head_dim=16, positions=256)


def tensor(name: str, *shape: int | str, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def parts(
    stored: str,
) -> tuple[dict[str, np.ndarray], list[tuple[str, list[str], list[str]]], dict[str, np.ndarray]]:
    """Initializers, the nodes that make q and k of x, and the checkpoint's weights."""
    generator = np.random.default_rng(0)
    q, k, o = (generator.standard_normal(s, dtype=np.float32) for s in ((4, 6), (4, 6), (6, 4)))
    held = {"embedding": generator.standard_normal((9, 6), dtype=np.float32), "o": o.T}
    held |= {"axis": np.array([1]), "head": generator.standard_normal((6, 9), dtype=np.float32)}
    weights = {"q_proj.weight": q, "o_proj.weight": o}
    if stored == "packed":
        held |= {"qk": np.concatenate((q, k)).T, "split": np.array([4, 4])}
        packed = ("MatMul", ["x", "qk"], ["qk_out"])
        return held, [packed, ("Split", ["qk_out", "split"], ["q", "k"])], weights
    keys = ("MatMul", ["x", "wk"], ["k"])
    if stored == "plain":
        held |= {"wq": q.T, "wk": k.T}
        return held, [("MatMul", ["x", "wq"], ["q"]), keys], weights
    held |= {"wq": q, "wk": k.T}
    turned = ("Transpose", ["wq"], ["wq_t"])
    return held, [turned, ("MatMul", ["x", "wq_t"], ["q"]), keys], weights


def model(stored: str, *, unknown: bool = False) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """Something like a model of hidden 6 and one head of 4, its q_proj stored in some way."""
    held, projected, weights = parts(stored)
    told = "attention_mask" if not unknown else "mystery"
    made = [
        ("Gather", ["embedding", "input_ids"], ["e"]),
        ("Relu", ["e"], ["x"]),
        *projected,
        ("Unsqueeze", ["k", "axis"], ["k4"]),
        ("Concat", ["past_key_values.0.key", "k4"], ["present.0.key"]),
        ("Concat", ["past_key_values.0.value", "k4"], ["present.0.value"]),
        ("ReduceSum", ["present.0.key", "axis"], ["all"]),
        ("ReduceSum", ["all", "axis"], ["flat"]),
        ("Unsqueeze", ["flat", "axis"], ["seen"]),
        ("Cast", [told], ["weight"]),
        ("ReduceSum", ["weight", "axis"], ["weights"]),
        ("Unsqueeze", ["weights", "axis"], ["column"]),
        ("Unsqueeze", ["column", "axis"], ["w"]),
        ("Mul", ["q", "seen"], ["qs"]),
        ("Mul", ["qs", "w"], ["mixed"]),
        ("MatMul", ["mixed", "o"], ["out"]),
        ("MatMul", ["out", "head"], ["logits"]),
    ]
    given: dict[str, dict[str, Any]] = {"Concat": {"axis": 2}, "Split": {"axis": -1}}
    given |= {"Cast": {"to": TensorProto.FLOAT}, "ReduceSum": {"keepdims": 0}}
    past = ("batch", 1, "past", 4)
    graph = helper.make_graph(
        [helper.make_node(op, takes, gives, **given.get(op, {})) for op, takes, gives in made],
        "model",
        [
            tensor("input_ids", "batch", "sequence", kind=TensorProto.INT64),
            tensor(told, "batch", "total", kind=TensorProto.INT64),
            tensor("past_key_values.0.value", *past),
            tensor("past_key_values.0.key", *past),
        ],
        [
            tensor("logits", "batch", "sequence", 9),
            tensor("present.0.value", "batch", 1, "total", 4),
            tensor("present.0.key", "batch", 1, "total", 4),
        ],
        [numpy_helper.from_array(np.ascontiguousarray(x), name) for name, x in held.items()],
    )
    made_of = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return made_of, weights


@pytest.mark.parametrize("stored", ["plain", "turned", "packed"])
def test_a_layer_is_cut_out_by_its_weights(stored: str, tmp_path: Path) -> None:
    whole, weights = model(stored)
    onnx.save(whole, tmp_path / "model.onnx")
    layer = cut(tmp_path / "model.onnx", tmp_path / "layer", weights)
    assert (layer.hidden, layer.output, layer.side) == ("x", "out", ("attention_mask",))
    keys, values = layer.caches
    assert keys == ("past_key_values.0.key", "present.0.key")
    assert values == ("past_key_values.0.value", "present.0.value")
    graph = onnx.load(layer.path).graph
    assert "embedding" not in {x.name for x in graph.initializer}
    assert [x.name for x in graph.output] == ["out", "present.0.value", "present.0.key"]
    assert nodes(layer.path) == len(whole.graph.node) - 3  # embedding, norm and head are gone
    onnx.checker.check_model(str(layer.path), full_check=True)


def test_what_cannot_be_cut_is_said(tmp_path: Path) -> None:
    whole, weights = model("plain", unknown=True)
    onnx.save(whole, tmp_path / "model.onnx")
    with pytest.raises(LayerError, match="'mystery'"):
        cut(tmp_path / "model.onnx", tmp_path / "layer", weights)
    other = weights | {"q_proj.weight": weights["q_proj.weight"] + 1}
    with pytest.raises(LayerError, match="q_proj"):
        cut(tmp_path / "model.onnx", tmp_path / "layer", other)


@pytest.fixture(scope="module")
def torch_export(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Layer]:
    """A tiny checkpoint, and its layer as torch.onnx exports it."""
    folder = tmp_path_factory.mktemp("torch")
    checkpoint.write(folder / "checkpoint", SIZES)
    (folder / "out").mkdir()
    from scripts.benchmarks.peers import torch_layer  # transformers takes seconds to import

    torch_layer.export(folder / "checkpoint", folder / "out", 18)
    return folder / "checkpoint", read(folder / "out" / "model.onnx")


@pytest.mark.filterwarnings("ignore")
def test_torch_is_right_and_is_timed(torch_export: tuple[Path, Layer]) -> None:
    path, layer = torch_export
    contender = Growing(layer, SIZES, 1)
    found = Reference(path).errors(contender)
    assert found.keys() == CASES.keys()
    assert all(isinstance(error, float) and error < 1e-5 for error in found.values()), found
    shape = Shape(batch=2, new=1, past=8, warm=1, timed=2)
    times = latencies({"torch": contender}, SIZES.hidden, rounds=2, shapes=(shape,))
    latency = times["torch"][str(shape)]
    assert isinstance(latency, Latency)
    assert 0 < latency.least <= latency.median <= latency.most


@pytest.mark.parametrize("cache", ["growing", "fixed"])
def test_ours_are_right(cache: str, tiny: Callable[..., Artifact], tiny_config: Path) -> None:
    folder = tiny(cache=cache, padding=True).path
    contender = OursGrowing(folder, SIZES, 1)
    if cache == "fixed":
        contender = OursStream(folder, SIZES, 1, capacity=32)
    found = Reference(tiny_config).errors(contender)
    assert all(isinstance(error, float) and error < 1e-5 for error in found.values()), found
    shape = Shape(batch=2, new=1, past=8, warm=1, timed=2)
    times = latencies({cache: contender}, SIZES.hidden, rounds=1, shapes=(shape,))
    assert isinstance(times[cache][str(shape)], Latency)


@pytest.mark.filterwarnings("ignore")
def test_a_sabotaged_layer_is_wrong(torch_export: tuple[Path, Layer], tmp_path: Path) -> None:
    """Twice as fast a rotation, which every case sees."""
    path, layer = torch_export
    sabotaged = onnx.load(layer.path)
    (inv_freq,) = (x for x in sabotaged.graph.initializer if "inv_freq" in x.name)
    inv_freq.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(inv_freq), inv_freq.name))
    onnx.save(sabotaged, tmp_path / "model.onnx")
    found = Reference(path).errors(Growing(read(tmp_path / "model.onnx"), SIZES, 1))
    assert all(error_cell(error).startswith("**wrong** ") for error in found.values()), found


@pytest.mark.parametrize(
    ("error", "cell"),
    [
        (3e-7, "3e-07"),
        (0.5, "**wrong** 0.5"),
        (float("nan"), "**wrong** nan"),
        ("refused: no", "refused: no"),
    ],
)
def test_an_error_above_rounding_is_wrong(error: float | str, cell: str) -> None:
    assert error_cell(error) == cell


def test_the_page_holds_refusals() -> None:
    latency: dict[str, Latency | str] = {
        str(shape): Latency(median=2.0, least=1.0, most=3.0) for shape in SHAPES
    }
    latency[str(SHAPES[1])] = "refused: past 2,048 | too long"
    errors: dict[str, float | str] = dict.fromkeys(CASES, 2e-7)
    errors["batched chunk"] = "refused: batch_size must be 1"
    facts = Facts(
        date="2020-02-02",
        cpu="a processor",
        load=0.0,
        threads=2,
        rounds=3,
        capacity=64,
        layer="hidden 64",
        versions={"ours": {"torch": "2.13.0"}},
        command="python -m scripts.benchmarks.peers",
    )
    exports = (
        Export(name="peer", seconds=1.5, peak=2_000_000, nodes=7),
        Export(name="other", problem="not installed: no matching distribution"),
    )
    rows = (Row(name="peer", errors=errors, latencies=latency),)
    lines = list(page_lines(Results(facts=facts, exports=exports, rows=rows)))
    assert lines[0].startswith("# ")
    text = "\n".join(lines)
    assert "| other | not installed: no matching distribution |" in text
    assert "| peer | 2e-07 | 2e-07 | 2e-07 | refused: batch_size must be 1 |" in text
    assert r"| 2.00 (1.00–3.00) | refused: past 2,048 \| too long |" in text  # noqa: RUF001
    tables = [line for line in lines if line.startswith("|")]
    assert all(line.endswith("|") for line in tables)


def test_a_failing_export_says_its_error(tmp_path: Path) -> None:
    code = "raise ValueError('rope_type ' + 'yarn')"
    fails = Exporter(name="x", group="x", command=("python", "-c", code))
    with pytest.raises(ExportError, match=r"^ValueError: rope_type yarn$"):
        exports.export(fails, tmp_path, tmp_path / "out")
    code = "import sys; open(sys.argv[1] + '/model.onnx', 'w'); bytearray(30_000_000)"
    works = Exporter(name="x", group="x", command=("python", "-c", code, "{out}"))
    cost = exports.export(works, tmp_path, tmp_path / "again")
    assert cost.seconds > 0
    assert cost.peak < 200e6  # of the process itself, not of this one


@pytest.fixture
def not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One peer that cannot be installed, and nothing else to measure."""
    said = "print('ERROR: No matching distribution found for peer==1.0'); raise SystemExit(1)"

    def ready(self: Environment) -> None:
        environments._run([sys.executable, "-c", said])

    monkeypatch.setattr(Environment, "ready", ready)
    monkeypatch.setattr(run, "own", lambda spec: [])
    monkeypatch.setattr(run, "warm", lambda names: None)


@pytest.mark.usefixtures("not_installed")
def test_a_peer_that_is_not_there_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(NotInstalledError, match=r"^No matching"):
        environments.ENVIRONMENTS["genai"].ready()
    sizes = ["--hidden", "64", "--heads", "4", "--kv-heads", "2", "--head-dim", "16"]
    assert program.main(["--peers", "genai", *sizes]) == 0
    printed = capsys.readouterr().out
    reason = "not installed: No matching distribution found for peer==1.0"
    assert f"| onnxruntime-genai | {reason} |" in printed
    command = "python -m scripts.benchmarks.peers --peers genai --hidden 64 --heads 4"
    assert f"`{command} --kv-heads 2 --head-dim 16`" in printed


def test_an_unknown_peer_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["--peers", "nobody"]) == 2
    assert "torch,optimum,genai,mobius" in capsys.readouterr().err

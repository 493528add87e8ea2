"""The benchmark: what it times, in which order, and what it makes of the figures. No speed is
asserted here: that is what the command is for."""

import dataclasses
import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from rope_export import Artifact, AttentionSpec
from rope_export.attention.operators import allowed_slots
from rope_export.bench import (
    Choice,
    Plan,
    Shape,
    baselines,
    benchmark,
    contenders,
    machine,
    proof,
    roofline,
    sweep,
    table,
)
from rope_export.bench import plot as picture
from rope_export.bench import timing as timings
from rope_export.bench.memory import peak_growth
from rope_export.bench.proof import Truth, WrongError, impossible
from rope_export.bench.roofline import Limits
from rope_export.bench.shapes import drawn
from rope_export.cli import run
from rope_export.errors import InputError
from rope_export.parity.report.result import Report
from rope_export.parity.rows import counted
from rope_export.spec import NormSpec, PositionScale
from tests.cli.test_cli import refused
from tests.conftest import TINY
from tests.unit.test_rope import PAIRED, layer

QUICK = Plan(rounds=2, seconds=0.0, calls=1, warm_seconds=0.0, warm_calls=1)
LIMITS = Limits(threads=1, bandwidth=48e9, rate=119e9, cache_bytes=0)
SMALL = (Shape(batch=1, sequence=1, past=8), Shape(batch=2, sequence=1, past=16))


def report(status: str) -> Report:
    """Of one comparison on onnxruntime."""
    error = {"passed": 0.0, "failed": 1.0}[status]
    row = counted(
        case="1x1", seed=0, runtime="onnxruntime", output="all", metric="bits", error=error
    )
    return Report(weights="proven", rows=[row])


@pytest.fixture(autouse=True)
def _one_thread():
    """Threads of PyTorch that wait for one another take longest where the cores are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Artifacts that were verified, each with success: the harness has tests of its own."""
    seen: list[str] = []

    def verify(artifact, progress):
        seen.append(artifact.path.name)
        artifact.record(parity={"status": "passed"})
        return report("passed")

    monkeypatch.setattr(proof, "verify", verify)
    monkeypatch.setattr("rope_export.bench.harness.measured_limits", lambda threads: LIMITS)
    return seen


@pytest.fixture
def artifact(tiny, tmp_path: Path) -> Path:
    """A copy without what other tests have measured on the shared one."""
    path = Path(shutil.copytree(tiny().path, tmp_path / "growing"))
    evidence = json.loads((path / "evidence.json").read_text())
    kept = {name: evidence[name] for name in ("kind", "source") if name in evidence}
    (path / "evidence.json").write_text(json.dumps(kept))
    return path


@pytest.fixture
def fixed(tiny, tmp_path: Path) -> Path:
    path = tiny("ort", "float32", "fixed", True).path
    return Path(shutil.copytree(path, tmp_path / "fixed"))


class Clock:
    """Time that passes only where a call says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def __call__(self) -> float:
        return self.now

    def call(self, name: str, seconds: float, waking: float = 0.0, naps: int = 0) -> Callable:
        """A call that takes `seconds`, and `waking` instead the first `naps` times after another
        contender's."""
        awake = 0

        def work() -> None:
            nonlocal awake
            awake = awake + 1 if self.log and self.log[-1] == name else 0
            self.log.append(name)
            self.now += waking if awake < naps else seconds

        return work


def test_figures_of_known_samples() -> None:
    found = timings.summarized([[3.0, 1.0, 2.0], [10.0, 10.0], [4.0, 5.0, 60.0]], seed=0)
    assert found.rounds == (2.0, 10.0, 5.0)
    assert (found.median, found.low, found.high, found.calls) == (5.0, 2.0, 10.0, 8)
    assert timings.summarized([[2.0], [2.0]], seed=0).interval == (2.0, 2.0)


def test_the_interval_is_the_bootstraps() -> None:
    """The median of n draws of n is the k-th smallest round or a smaller one when at least half of
    the draws are: of 7, in 1.0 % for the first and 10.8 % for the second, by the binomial
    distribution; so 2.5 % and 97.5 % are the second from either end. Of 3, the first in 26 %."""
    assert timings.summarized([[float(n)] for n in range(1, 8)], seed=0).interval == (2.0, 6.0)
    assert timings.summarized([[1.0], [2.0], [3.0]], seed=0).interval == (1.0, 3.0)


TICK = 2.0**-6
"""Of the fake clock: sums of it are exact."""

BLOCKS = Plan(rounds=6, seconds=8 * TICK, calls=3, warm_seconds=4 * TICK, warm_calls=2)


def test_contenders_take_turns_in_blocks_and_each_round_has_an_order_of_its_own() -> None:
    clock = Clock()
    found = timings.measure({name: clock.call(name, TICK) for name in "abc"}, BLOCKS, clock)
    blocks = [clock.log[at : at + 12] for at in range(0, len(clock.log), 12)]
    assert len(blocks) == 3 * BLOCKS.rounds
    assert all(len(set(block)) == 1 and len(block) == 12 for block in blocks)
    rounds = [tuple(block[0] for block in blocks[at : at + 3]) for at in range(0, 18, 3)]
    assert {tuple(sorted(names)) for names in rounds} == {("a", "b", "c")}
    assert len(set(rounds)) > 1
    assert {timing.calls for timing in found.values()} == {8 * BLOCKS.rounds}
    assert {timing.median for timing in found.values()} == {TICK}


def test_the_order_comes_from_the_seed() -> None:
    logs = []
    for seed in (0, 0, 1):
        clock = Clock()
        plan = dataclasses.replace(BLOCKS, seed=seed)
        timings.measure({name: clock.call(name, TICK) for name in "abcd"}, plan, clock)
        logs.append(clock.log)
    assert logs[0] == logs[1] != logs[2]


def test_calls_that_wake_a_contender_up_are_not_counted() -> None:
    clock = Clock()
    calls = {"a": clock.call("a", TICK, waking=99 * TICK, naps=2), "b": clock.call("b", TICK)}
    found = timings.measure(calls, BLOCKS, clock)
    assert found["a"].high == TICK


def test_slow_calls_are_counted_a_few_times() -> None:
    clock = Clock()
    found = timings.measure({"a": clock.call("a", 100.0)}, BLOCKS, clock)
    assert found["a"].calls == BLOCKS.calls * BLOCKS.rounds
    assert found["a"].median == 100.0


@pytest.mark.parametrize(
    ("shape", "milliseconds"),
    [((1, 1, 128), 0.9), ((1, 1, 2048), 1.05), ((4, 1, 1024), 1.2), ((8, 1, 2048), 2.3)],
)
def test_limit_of_a_known_layer(shape, milliseconds) -> None:
    """Worked out by hand: hidden 2048, 32 heads, 8 key/value heads, head 64 at 48 GB/s."""
    spec = AttentionSpec(hidden_size=2048, heads=32, kv_heads=8, head_dim=64, rope=None)
    size = roofline.weight_bytes(spec)
    assert size == 41_943_040
    batch, sequence, past = shape
    least = roofline.work(spec, Shape(batch=batch, sequence=sequence, past=past), size)
    assert 1e3 * least.bytes / LIMITS.bandwidth == pytest.approx(milliseconds, abs=0.051)
    assert LIMITS.seconds(least) >= least.bytes / LIMITS.bandwidth
    prompt = roofline.work(spec, Shape(batch=1, sequence=512, past=0), size)
    assert LIMITS.seconds(prompt) == prompt.flops / LIMITS.rate


VISIBLE = [
    {},
    {"window": 3},
    {"window": 7},
    {"chunk": 4},
    {"causal": False},
    {"causal": False, "window": 3, "window_after": 2},
    {"causal": False, "chunk": 4},
]


def with_a_past(facts: dict[str, object]) -> bool:
    """Whether a layer of these facts can have a cache."""
    return bool(facts.get("causal", True))


@pytest.mark.parametrize(
    ("facts", "shape"),
    [
        (facts, shape)
        for facts in VISIBLE
        for shape in [(1, 0), (1, 9), (5, 0), (5, 6), (9, 3)]
        if with_a_past(facts) or not shape[1]
    ],
    ids=str,
)
def test_visible_slots_are_counted_as_the_layer_sees_them(facts, shape) -> None:
    sequence, past = shape
    spec = layer(**facts).spec
    sizes = Shape(batch=1, sequence=sequence, past=past)
    allowed = allowed_slots(sequence, sizes.total, None, spec, torch.device("cpu"))[0, 0]
    assert roofline.visible_pairs(spec, sizes) == int(allowed.sum())
    assert roofline.slots_read(spec, sizes) == int(allowed[:, :past].any(dim=0).sum())


@pytest.mark.parametrize("facts", [{}, {"gate": "head"}, {"q_bias": True}], ids=str)
def test_flops_are_those_that_torch_counts(facts) -> None:
    """One new token sees every slot, so nothing is computed that a limit would not count."""
    module, shape = layer(**facts), Shape(batch=3, sequence=1, past=20)
    inputs = {name: torch.from_numpy(x) for name, x in drawn(module.spec, shape, 0).items()}
    with FlopCounterMode(display=False) as counter:
        module(**inputs)
    assert roofline.work(module.spec, shape, 0).flops == counter.get_total_flops()


def test_the_last_cache_is_the_largest_in_bytes(monkeypatch, tmp_path) -> None:
    """As Linux writes sizes: 48K, 2048K or 32M."""
    monkeypatch.setattr(roofline, "Path", lambda _: tmp_path)
    assert roofline.last_level_cache() == 0
    for index, (size, largest) in enumerate(
        [("512", 512), ("48K", 49_152), ("2048K", 2_097_152), ("32M", 33_554_432)]
    ):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(f"{size}\n")
        assert roofline.last_level_cache() == largest


def test_scores_that_do_not_fit_in_memory_are_not_compared(monkeypatch) -> None:
    """2 rows of 4 heads with 1,000 by 3,000 scores in float32: 96 MB at the least."""
    spec, shape = AttentionSpec.from_hf(TINY), Shape(batch=2, sequence=1_000, past=2_000)
    monkeypatch.setattr("rope_export.bench.proof.available_memory", lambda: 95_000_000)
    assert "are free" in str(impossible(spec, shape))
    monkeypatch.setattr("rope_export.bench.proof.available_memory", lambda: 10_000_000_000)
    assert impossible(spec, shape) is None


def test_limits_are_measured(monkeypatch) -> None:
    monkeypatch.setattr(roofline, "LEAST_BUFFER", 2**16)
    monkeypatch.setattr(roofline, "PROBE_SECONDS", 0.0)
    monkeypatch.setattr(roofline, "GEMM_SIZES", (8, 16))
    monkeypatch.setattr(roofline, "last_level_cache", lambda: 0)
    found = roofline.measured_limits(threads=2)
    assert found.bandwidth > 0
    assert found.rate > 0


def test_sweep_is_every_combination() -> None:
    assert sweep("1,4", "1", "128,2048") == tuple(
        Shape(batch=b, sequence=1, past=p) for b in (1, 4) for p in (128, 2048)
    )
    assert [shape.past for shape in sweep(None, None, None)][-2:] == [0, 0]
    assert sweep(None, "16", None) == (Shape(batch=1, sequence=16, past=0),)
    assert len(sweep("2", None, None)) == 3


BAD = {
    "--past -1": "-1",
    "--batch 0": "0",
    "--sequence 0": "0",
    "--batch 1,x": "'x'",
    "--past 1.5": "1.5",
    "--batch ,": "''",
    "--only spiral": "spiral",
    "--against growing": "torch-sdpa",
    "--threads 0": "--threads 0",
    "--capacity 0": "--capacity 0",
    "--rounds 0": "rounds=0",
    "--plot picture.pdf": ".png, .svg",
    "--plot nowhere/picture.png": "nowhere",
    "--plot picture.png --past 0": "--past",
    "--json --markdown": "one of them",
    "--bogus": "bogus",
}


@pytest.mark.parametrize("options", BAD)
def test_bad_option_is_one_line_and_status_2(options, artifact, verified, capsys) -> None:
    assert BAD[options] in refused(capsys, "bench", str(artifact), *options.split())
    assert not verified


def test_what_is_no_artifact_is_refused(tmp_path, artifact, capsys) -> None:
    assert "manifest.json" in refused(capsys, "bench", str(tmp_path))
    assert "twice" in refused(capsys, "bench", str(artifact), str(artifact))


BASELINES = {
    "grouped": {},
    "one head each": {"kv_heads": 4},
    "interleaved, partial": {"rope": dataclasses.replace(PAIRED, rotary_dim=8)},
    "biases": {"q_bias": True, "k_bias": True, "v_bias": True, "o_bias": True},
    "norms": {"q_norm": NormSpec(), "k_norm": NormSpec(over="all"), "o_norm": NormSpec()},
    "norms after": {"q_norm": NormSpec(), "k_norm": NormSpec(), "norm_after_rope": True},
    "gates": {"gate": "feature"},
    "scales": {"scale": 0.5, "position_scale": PositionScale(beta=0.5, length=8), "clip": 1.0},
    "narrow values": {"value_dim": 8},
    "no rotation": {"rope": None},
    "encoder": {"causal": False},
}


@pytest.mark.parametrize(
    ("facts", "shape"),
    [
        (name, shape)
        for name, facts in BASELINES.items()
        for shape in [(1, 1, 9), (3, 1, 9), (2, 5, 0), (2, 5, 9)]
        if with_a_past(facts) or not shape[2]
    ],
)
def test_fused_attention_in_place_is_the_layer(facts, shape) -> None:
    module, shape = layer(**BASELINES[facts]), Shape(**dict(zip(FIELDS, shape, strict=True)))
    inputs = drawn(module.spec, shape, 1)
    tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
    arguments = baselines.SdpaBaseline(module).arguments(tensors, shape)
    with torch.no_grad():
        expected, *cache = module(**tensors)
        for _ in range(2):
            # Sums of at most 64 terms of order 1.
            torch.testing.assert_close(
                baselines.sdpa_step(*arguments), expected, rtol=0, atol=2**-18
            )
        assert torch.equal(arguments[3], cache[0])
        assert torch.equal(arguments[4], cache[1])


FIELDS = ("batch", "sequence", "past")


@pytest.mark.parametrize("facts", [{"softcap": 9.0}, {"window": 4}, {"sinks": True}], ids=str)
def test_what_fused_attention_cannot_express_is_left_out(facts) -> None:
    for baseline in (baselines.SdpaBaseline, baselines.CompiledBaseline):
        assert next(iter(facts)) in str(baseline.refusal(layer(**facts).spec))
    assert baselines.EagerBaseline.refusal(layer(**facts).spec) is None


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_gross_faults_are_told_from_rounding(dtype) -> None:
    module = layer(dtype=dtype)
    shape = Shape(batch=2, sequence=3, past=40)
    inputs = drawn(module.spec, shape, 0)
    truth = Truth.of(module, inputs, shape)
    right = truth.expected
    spacing = 2 * proof.UNIT_ROUNDOFF[dtype]
    truth.check((right.astype(np.float64) * (1 + spacing)).astype(right.dtype), truth.tolerance)
    for wrong in (np.roll(right, 1, axis=0), right[..., :-1], right.astype(np.float64)):
        with pytest.raises(WrongError):
            truth.check(wrong, truth.tolerance)
    with pytest.raises(WrongError, match="nan"):
        truth.check(right * np.array(np.nan, right.dtype), truth.tolerance)
    stale = inputs | {"past_key": np.roll(inputs["past_key"], 1, axis=2)}
    with pytest.raises(WrongError):
        truth.check(Truth.of(module, stale, shape).expected, truth.tolerance)


@pytest.mark.parametrize("name", ["artifact", "fixed"])
def test_artifacts_are_compared_and_called(name, request, verified) -> None:
    found = benchmark(
        [request.getfixturevalue(name)],
        shapes=(*SMALL, Shape(batch=2, sequence=3, past=4)),
        plan=QUICK,
        choice=Choice(against=("torch-sdpa",)),
    )
    assert [row.status for row in found.rows] == ["measured"] * 6
    for row in found.rows:
        assert row.error is not None
        assert row.error <= row.allowed < 2**-12
        assert row.of_limit == row.limit / row.timing.median
        assert (row.contender == "torch-sdpa") == row.torch
        assert row.ratio == 1.0 or not row.torch
    assert found.status == "measured"


def test_a_shape_that_cannot_run_says_why(fixed, verified) -> None:
    shapes = (Shape(batch=1, sequence=1, past=7), *SMALL)
    found = benchmark(
        [fixed], shapes=shapes, plan=QUICK, capacity=8, choice=Choice(only=("fixed",))
    )
    assert [row.status for row in found.rows] == ["measured", "cannot", "cannot"]
    assert all("capacity 8" in row.reason for row in found.rows[1:])


def test_without_a_cache_there_is_no_past(artifact) -> None:
    opened = Artifact.open(artifact)
    whole = opened.manifest.interface
    interface = dataclasses.replace(
        whole, inputs=whole.inputs[:2], outputs=whole.outputs[:1], caches=()
    )
    bare = msgspec.structs.replace(opened.manifest, cache="none", interface=interface)
    contender = contenders.ArtifactContender(
        "bare", dataclasses.replace(opened, facts=bare), threads=1
    )
    with pytest.raises(contenders.CannotError, match="no cache"):
        contender.prepare(SMALL[0], {}, None)


def test_nothing_measured_is_status_3(artifact, verified, monkeypatch, capsys) -> None:
    reason = {"runtime": "onnxruntime", "reason": "it rains"}
    nothing = Report(weights="proven", skipped=[reason])
    monkeypatch.setattr(proof, "verify", lambda artifact, progress: nothing)
    command = ["bench", str(artifact), "--past", "8", "--rounds", "1", "--against", "torch-sdpa"]
    assert run(command) == 3
    printed = capsys.readouterr().out
    assert "cannot: it rains" in printed
    assert "1.00" in printed  # PyTorch was measured, but that is not what was asked for


def test_a_wrong_artifact_is_not_measured(artifact, verified, monkeypatch, capsys) -> None:
    monkeypatch.setattr(proof, "verify", lambda artifact, progress: report("failed"))
    monkeypatch.setattr("rope_export.bench.entrants.ArtifactContender", None)  # not even opened
    assert run(["bench", str(artifact), "--past", "8", "--rounds", "1"]) == 1
    printed = capsys.readouterr().out
    assert "wrong: not measured" in printed
    assert "1 comparisons failed" in " ".join(printed.split())
    assert "torch" not in printed.split("rounds:")[0]


def test_an_artifact_that_is_wrong_at_the_measured_shape_is_not_measured(
    artifact, verified, monkeypatch
) -> None:
    plain = contenders.ArtifactContender._run

    def shifted(self, feeds):
        outputs = plain(self, feeds)
        return outputs | {"attention_output": np.roll(outputs["attention_output"], 1, axis=-1)}

    monkeypatch.setattr(contenders.ArtifactContender, "_run", shifted)
    found = benchmark([artifact], shapes=SMALL, plan=QUICK, choice=Choice(against=("torch-sdpa",)))
    ours = [row for row in found.rows if not row.torch]
    assert [(row.status, row.timing) for row in ours] == [("wrong", None)] * 2
    assert found.status == "wrong"


def test_a_stream_that_is_wrong_is_not_measured(fixed, verified, monkeypatch) -> None:
    """Its second step does not see what the first one wrote."""
    from rope_export.sessions.stream import Stream

    step = Stream.step

    def forgetful(self, *given, **named):
        for cache in self._caches.tensors.values():
            cache[...] = 0
        return step(self, *given, **named)

    monkeypatch.setattr(Stream, "step", forgetful)
    found = benchmark([fixed], shapes=SMALL[:1], plan=QUICK, choice=Choice(only=("fixed",)))
    assert found.rows[0].status == "wrong"
    assert "Stream" in found.rows[0].reason


def test_trust_needs_evidence_about_the_same_files(artifact, verified) -> None:
    def look(**options: bool) -> None:
        benchmark(
            [artifact], shapes=SMALL[:1], plan=QUICK, choice=Choice(only=("growing",)), **options
        )

    look(trust=True)
    assert len(verified) == 1  # there was no evidence
    look(trust=True)
    assert len(verified) == 1
    look()
    assert len(verified) == 2
    evidence = json.loads((artifact / "evidence.json").read_text())
    other = evidence["proven"] | {"files": {"model.onnx": "0"}}
    without = {name: value for name, value in evidence.items() if name != "proven"}
    failed = evidence | {"parity": {"status": "failed"}}
    for changed in (evidence | {"proven": other}, without, failed):
        (artifact / "evidence.json").write_text(json.dumps(changed))
        before = len(verified)
        look(trust=True)
        assert len(verified) == before + 1


def test_pytorch_alone_needs_no_proof_of_the_artifact(artifact, verified) -> None:
    only = Choice(only=("torch-eager", "torch-sdpa"))
    found = benchmark([artifact], shapes=SMALL[:1], plan=QUICK, choice=only)
    assert [row.contender for row in found.rows] == ["torch-eager", "torch-sdpa"]
    assert min(row.ratio for row in found.rows) <= 1.0 == max(row.ratio for row in found.rows)
    assert found.status == "measured"
    assert not verified


def test_what_cannot_be_compiled_is_left_out(artifact, verified, monkeypatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no compiler\nand more")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: broken)
    found = benchmark(
        [artifact], shapes=SMALL[:1], plan=QUICK, choice=Choice(only=("torch-compile",))
    )
    assert found.rows[0].reason == "torch.compile failed: no compiler"
    assert not verified  # nobody asked about the artifact


KEYS = "status command date machine versions artifacts rows left_out memory notes"
MACHINE_KEYS = (
    "cpu cores threads bandwidth_gb_s gemm_gflop_s last_level_cache_bytes background_cores"
)
ARTIFACT_KEYS = "path lowering opset dtype cache padding quantization files parity trusted slots"
ROW_KEYS = (
    "batch sequence past contender status reason median_ms low_ms high_ms interval_ms rounds_ms "
    "calls tokens_per_second bytes flops limit_ms of_limit ratio error allowed"
)


def test_json_is_one_object_with_the_documented_keys(artifact, verified, capsys) -> None:
    command = ["bench", str(artifact), "--past", "8", "--against", "torch-sdpa", "--rounds", "1"]
    assert run([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == KEYS.split()
    assert [list(row) for row in found["rows"]] == [ROW_KEYS.split()] * 2
    for row in found["rows"]:
        (median,) = row["rounds_ms"]  # of one round, which is all there is
        assert row["interval_ms"] == [median, median]
        assert row["median_ms"] == median
    assert found["command"] == " ".join(["rope-export", *command, "--json"])
    assert list(found["artifacts"]["growing"]) == ARTIFACT_KEYS.split()
    assert found["artifacts"]["growing"]["parity"] == "passed"
    assert list(found["machine"]) == MACHINE_KEYS.split()
    assert run([*command, "--markdown"]) == 0
    printed = capsys.readouterr().out
    assert f"`{' '.join(['rope-export', *command, '--markdown'])}`" in printed
    assert sum(line.startswith("| 1x1, past 8 |") for line in printed.splitlines()) == 2


@pytest.fixture(scope="module")
def measured(tiny, tmp_path_factory):
    """A benchmark of two batches, three pasts, and one contender that was wrong at one shape."""
    path = shutil.copytree(tiny().path, tmp_path_factory.mktemp("measured") / "growing")
    shapes = [Shape(batch=b, sequence=1, past=p) for b in (1, 2) for p in (4, 8, 16)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proof, "verify", lambda artifact, progress: report("passed"))
        patch.setattr("rope_export.bench.harness.measured_limits", lambda threads: LIMITS)
        found = benchmark([path], shapes=shapes, plan=QUICK, choice=Choice(against=("torch-sdpa",)))
    first = dataclasses.replace(
        found.rows[0], status="wrong", reason="[off] by far", timing=None, ratio=None
    )
    return dataclasses.replace(found, rows=(first, *found.rows[1:]), left_out={"torch-x": "why"})


def test_table_has_every_row_and_what_explains_it(measured) -> None:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(table.rich_table(measured))
    printed = console.export_text()
    assert printed.count("torch-sdpa") == 6
    assert "wrong: not measured ([off] by far)" in printed
    assert "left out torch-x: why" in printed
    assert "48.0 GB/s" in printed


@pytest.mark.parametrize(("background", "mark"), [(None, ""), (0.0, ""), (1.0, "?")])
def test_speed_ups_of_a_busy_machine_are_marked(measured, background, mark) -> None:
    here = dataclasses.replace(measured.machine, background_cores=background, cores=2)
    rows = [dataclasses.replace(row, ratio=2.0) for row in measured.rows[1:]]
    printed = table.markdown(dataclasses.replace(measured, machine=here, rows=tuple(rows)))
    assert printed.count(f"| 2.00{mark} |") == len(rows)


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_plot_draws_a_panel_a_batch(measured, suffix, tmp_path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / f"picture{suffix}"
    picture.check_target(path, [row.shape for row in measured.rows])
    picture.draw(measured, path)
    written = path.read_bytes()
    assert written.startswith(b"\x89PNG\r\n" if suffix == ".png" else b"<?xml")
    if suffix == ".svg":
        for text in (b"batch 1", b"batch 2", b"torch-sdpa", b"limit of growing"):
            assert text in written  # as comments beside the drawn letters
        picture.draw(measured, path)
        assert path.read_bytes() == written


def test_plot_without_matplotlib_names_the_extra(artifact, verified, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run(["bench", str(artifact), "--past", "8", "--plot", "picture.png"]) == 3
    assert "rope_export[report]" in capsys.readouterr().err
    assert not verified


def test_memory_of_a_contender_is_more_than_its_cache(tiny) -> None:
    """Past and present are there at once: 2 x (key and value) x 2 heads x 16 x 4 bytes a slot."""
    shape = Shape(batch=1, sequence=1, past=100_000)
    peak = peak_growth(tiny().path, None, shape, threads=None, capacity=None)
    assert 2 * 2 * 2 * 16 * 4 * shape.past < peak < 2**30


def test_background_load_is_counted(monkeypatch) -> None:
    machine_seconds = iter((100.0, 107.0))
    monkeypatch.setattr(machine, "_processor_seconds", lambda: next(machine_seconds))
    monkeypatch.setattr(machine.time, "process_time", iter((10.0, 12.0)).__next__)
    monkeypatch.setattr(machine.time, "monotonic", iter((0.0, 2.5)).__next__)
    watch = machine.BackgroundLoad()
    with watch.watched():
        pass
    assert watch.cores == 2.0
    assert machine.BackgroundLoad().cores is None


def test_names_of_artifacts_are_folders_or_paths(tmp_path, artifact) -> None:
    from rope_export.bench.entrants import named

    others = [tmp_path / "other" / "growing", tmp_path / "torch-sdpa"]
    for other in others:
        shutil.copytree(artifact, other)
    assert list(named([artifact])) == ["growing"]
    assert list(named([artifact, *others])) == list(map(str, [artifact, *others]))
    with pytest.raises(InputError, match="no artifact"):
        named([])


@pytest.mark.usefixtures("short_prompts", "known_limits")
def test_weights_in_few_bits_may_be_off_by_what_was_proven_and_no_more(
    exported, tmp_path, monkeypatch
) -> None:
    """Activations rounded to int8 are further off eager than rounding in float32 would allow."""
    kept = exported(TINY, weights="int4", cache="fixed").path
    artifact = Path(shutil.copytree(kept, tmp_path / "int4"))
    choice = Choice(only=("int4",))
    (row,) = benchmark([artifact], shapes=SMALL[:1], plan=QUICK, choice=choice).rows
    assert row.status == "measured"
    assert proof.UNIT_ROUNDOFF["float32"] * 1e3 < row.error < row.allowed
    plain = contenders.ArtifactContender._run

    def shifted(self, feeds):
        outputs = plain(self, feeds)
        return outputs | {"attention_output": outputs["attention_output"] * (1 + row.allowed)}

    monkeypatch.setattr(contenders.ArtifactContender, "_run", shifted)
    (row,) = benchmark([artifact], shapes=SMALL[:1], plan=QUICK, choice=choice, trust=True).rows
    assert row.status == "wrong"

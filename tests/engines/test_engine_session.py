"""The runtime of engines: who gives tensors their addresses, and which profile runs a call."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from rope_export import build_engine, gpu, open_session, verify
from rope_export.engines.calls import CONTEXTS, GRAPHS
from rope_export.engines.plan import Engine
from rope_export.errors import InputError, ProfileError, RopeExportError, UnavailableError
from rope_export.parity.cases import Case
from rope_export.runtimes.tensorrt import EngineRunner, TensorrtRuntime
from rope_export.sessions import Session
from tests.conftest import TINY
from tests.support.fake_context import FakeMachine
from tests.support.gpus import with_gpu, without_gpu

HIDDEN = TINY["hidden_size"]
CAPACITY = 24
PROFILES = {
    "growing": ("batch=1:1:3,sequence=1:8:32,past=0:0:64", "batch=1:1:3,sequence=1,past=0:16:64"),
    "fixed": (
        f"batch=1:1:3,sequence=1:8:16,capacity={CAPACITY}",
        f"batch=1:1:3,sequence=1,capacity={CAPACITY}",
    ),
}
ATOL = 2**-8
"""Outputs are of order 1 and rounded to float16 a few times on the way."""


@pytest.fixture(scope="module")
def engine(tiny, tmp_path_factory) -> Callable[[str], Engine]:
    """Real engines of the tiny layer, one for each kind of cache."""
    folder, made = tmp_path_factory.mktemp("engines"), {}

    def build(cache: str) -> Engine:
        if cache not in made:
            made[cache] = build_engine(
                tiny("tensorrt", "float16", cache),
                out=folder / cache,
                profiles=PROFILES[cache],
                compute_capabilities=["8.9"],
                cache=folder / "cache",
            )
        return made[cache]

    return build


def opened(engine: Engine) -> tuple[FakeMachine, Session]:
    machine = FakeMachine(engine)
    runner = EngineRunner(engine, machine.context, machine.device)
    return machine, Session(engine.manifest, runner)


def tokens(batch: int, count: int, seed: int = 0) -> torch.Tensor:
    drawn = np.random.default_rng(seed).standard_normal((batch, count, HIDDEN))
    return torch.from_numpy(drawn.astype(np.float16))


def call(batch: int, sequence: int, past: int, seed: int = 0) -> dict[str, torch.Tensor]:
    cache = np.random.default_rng(seed + 1).standard_normal((2, batch, 2, past, 16))
    key, value = torch.from_numpy(cache.astype(np.float16))
    positions = past + torch.arange(sequence).expand(batch, sequence)
    return {
        "hidden_states": tokens(batch, sequence, seed),
        "position_ids": positions.contiguous(),
        "past_key": key,
        "past_value": value,
    }


@pytest.mark.parametrize("sizes", [(1, 1, 0), (2, 5, 0), (3, 1, 64), (1, 32, 7)])
def test_a_call_gives_what_the_model_gives(engine, sizes) -> None:
    inputs = call(*sizes)
    with open_session(engine("growing")) as model:
        expected = model.run(inputs)
    _, session = opened(engine("growing"))
    for name, value in session.run(inputs).items():
        assert torch.equal(value, expected[name])


def test_inputs_are_bound_where_they_lie_and_outputs_are_new(engine) -> None:
    machine, session = opened(engine("growing"))
    inputs = call(1, 2, 4)
    first, second = session.run(inputs), session.run(inputs)
    for found, made in zip((first, second), machine.calls, strict=True):
        for name, tensor in {**inputs, **found}.items():
            assert made["addresses"][name] == tensor.data_ptr()
    for name, value in first.items():
        assert value.data_ptr() != second[name].data_ptr()


def test_numpy_in_numpy_out(engine) -> None:
    inputs = call(2, 3, 4)
    _, session = opened(engine("growing"))
    arrays = session.run({name: x.numpy() for name, x in inputs.items()})
    for name, value in session.run(inputs).items():
        assert isinstance(arrays[name], np.ndarray)
        np.testing.assert_array_equal(arrays[name], value.numpy())


def test_prompts_and_single_tokens_use_their_own_profile(engine) -> None:
    """One context, told anew what belongs to a profile whenever that changes."""
    machine, session = opened(engine("growing"))
    stream = session.start(batch=2)
    for at, count in enumerate((7, 1, 1, 5, 1)):
        stream.step(tokens(2, count, at))
    assert [made["profile"] for made in machine.calls] == [0, 1, 1, 0, 1]
    assert [made["sizes"]["past"] for made in machine.calls] == [0, 7, 8, 9, 14]
    for sequence in (2, 1, 2):  # a past of the same shape has to be said again
        session.run(call(1, sequence, 4))
    assert machine.made == 1


@pytest.mark.parametrize("cache", ["growing", "fixed"])
def test_steps_add_up_to_one_pass(engine, cache) -> None:
    x = tokens(2, 12)
    _, session = opened(engine(cache))
    stream = session.start(batch=2)
    parts = [stream.step(x[:, a:b]) for a, b in ((0, 7), (7, 8), (8, 9), (9, 10), (10, 12))]
    with open_session(engine(cache)) as model:
        whole = model.start(batch=2, capacity=CAPACITY).step(x)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=ATOL)


def test_a_stream_writes_its_fixed_cache_where_it_lies(engine) -> None:
    machine, session = opened(engine("fixed"))
    stream = session.start(batch=2)
    stream.step(tokens(2, 3))
    lies = {name: value.data_ptr() for name, value in stream._caches.tensors.items()}
    for at in range(4):
        stream.step(tokens(2, 1, at))
    for made in machine.calls:
        for name, address in lies.items():
            assert made["addresses"][name] == made["addresses"][f"{name}_out"] == address
    assert np.all(stream._caches.tensors["key_cache"][:, :, :7].numpy() != 0)
    assert np.all(stream._caches.tensors["key_cache"][:, :, 7:].numpy() == 0)


@pytest.mark.parametrize("kind", ["torch", "numpy"])
def test_run_leaves_the_callers_fixed_cache_alone(engine, kind) -> None:
    _, session = opened(engine("fixed"))
    inputs = call(1, 2, 0) | {
        name: torch.ones(1, 2, CAPACITY, 16, dtype=torch.float16)
        for name in ("key_cache", "value_cache")
    }
    del inputs["past_key"], inputs["past_value"]
    inputs["cache_lengths"] = torch.tensor([3])
    given = inputs if kind == "torch" else {name: x.numpy() for name, x in inputs.items()}
    outputs = session.run(given)
    assert np.all(np.asarray(given["key_cache"]) == 1)
    written = np.asarray(outputs["key_cache_out"])[0, :, :, 0] != 1
    assert written.any(axis=0).nonzero()[0].tolist() == [3, 4]


def test_decoding_is_recorded_once_and_then_repeated(engine) -> None:
    machine, session = opened(engine("fixed"))
    streams = [session.start(batch=1) for _ in range(2)]
    with open_session(engine("fixed")) as model:
        expected = [model.start(batch=1, capacity=CAPACITY) for _ in range(2)]
        for at in range(8):
            for stream, other in zip(streams, expected, strict=True):
                x = tokens(1, 1, seed=at)
                torch.testing.assert_close(stream.step(x), other.step(x), rtol=0, atol=0)
    # Of eight steps of each stream the first is a call, the second a call that is recorded.
    assert machine.device.replays == 2 * 6
    assert len({made["context"] for made in machine.calls}) == 3
    kept = streams[0].step(tokens(1, 1))
    before = kept.clone()
    streams[0].step(tokens(1, 1, seed=5))
    assert torch.equal(kept, before)


def test_what_cannot_be_recorded_is_called(engine) -> None:
    machine, session = opened(engine("fixed"))
    machine.capturable = False
    stream = session.start(batch=1)
    for at in range(4):
        stream.step(tokens(1, 1, at))
    assert machine.device.replays == 0
    assert len(machine.calls) == 4


def test_graphs_of_streams_that_ended_are_dropped(engine) -> None:
    _, session = opened(engine("fixed"))
    streams = [session.start(batch=1) for _ in range(GRAPHS + 3)]
    for stream in streams:
        stream.step(tokens(1, 1))
        stream.step(tokens(1, 1))
    assert len(session.runner._calls._graphs) == GRAPHS


@pytest.mark.parametrize(
    ("cache", "sizes", "named"),
    [
        ("growing", (4, 1, 0), r"batch = 4 is not in 1:1:3"),
        ("growing", (1, 33, 0), r"sequence = 33 is not in 1:8:32"),
        ("growing", (1, 1, 65), r"past = 65 is not in 0:0:64"),
    ],
)
def test_sizes_outside_of_every_profile_are_refused(engine, cache, sizes, named) -> None:
    machine, session = opened(engine(cache))
    with pytest.raises(ProfileError, match=named):
        session.run(call(*sizes))
    assert not machine.calls


def test_a_stream_has_the_capacity_of_the_engine(engine) -> None:
    _, session = opened(engine("fixed"))
    assert session.start(batch=1).capacity == CAPACITY
    with pytest.raises(InputError, match=f"built for a cache of {CAPACITY}"):
        session.start(batch=1, capacity=CAPACITY + 1)
    with pytest.raises(ProfileError, match="sequence = 17"):
        session.start(batch=1).step(tokens(1, 17))


def test_what_does_not_lie_as_a_context_reads_it_is_copied(engine) -> None:
    machine, session = opened(engine("growing"))
    inputs = call(2, 3, 4)
    expected = session.run(inputs)
    hidden = torch.empty(2 * 3 * HIDDEN + 1, dtype=torch.float16)[1:].view(2, 3, HIDDEN)
    hidden.copy_(inputs["hidden_states"])
    turned = inputs["past_key"].transpose(0, 1).contiguous().transpose(0, 1)
    found = session.run(inputs | {"hidden_states": hidden, "past_key": turned})
    for name, value in found.items():
        assert torch.equal(value, expected[name])
    for name, given in (("hidden_states", hidden), ("past_key", turned)):
        assert machine.calls[-1]["addresses"][name] != given.data_ptr()


def test_threads_share_a_few_contexts(engine) -> None:
    machine, shared = opened(engine("growing"))
    calls = [call(1 + n % 3, 1 + n % 5, n % 7, n) for n in range(48)]
    with open_session(engine("growing")) as model, ThreadPoolExecutor(8) as pool:
        alone = [model.run(inputs) for inputs in calls]
        for found, expected in zip(pool.map(shared.run, calls), alone, strict=True):
            for name, value in found.items():
                assert torch.equal(value, expected[name])
    assert 1 <= machine.made <= CONTEXTS
    # The work of the call before is waited for whenever a context is used again.
    assert machine.device.waits == len(calls) - machine.made


def test_a_context_that_failed_is_not_used_again(engine) -> None:
    machine, session = opened(engine("growing"))
    machine.breaks = RopeExportError("the GPU fell off")
    with pytest.raises(RopeExportError, match="fell off"):
        session.run(call(1, 1, 0))
    machine.breaks = None
    session.run(call(1, 1, 0))
    assert len({made["context"] for made in machine.calls}) == 2


def test_a_closed_session_says_so(engine) -> None:
    _, session = opened(engine("growing"))
    session.close()
    with pytest.raises(RopeExportError, match="closed"):
        session.run(call(1, 1, 0))


@pytest.fixture
def few_cases(monkeypatch) -> None:
    """Beside the corners, which are what these tests are about."""
    one, other = Case(batch=1, sequence=7), Case(batch=1, sequence=512)
    monkeypatch.setattr(
        "rope_export.parity.subjects.layer.regular_cases", lambda *_, **__: [one, other]
    )
    monkeypatch.setattr("rope_export.parity.subjects.layer.layer_properties", lambda *_: [])


@pytest.fixture
def here(engine, monkeypatch) -> FakeMachine:
    """As where the GPU is: the runtime opens the engine on the fake machine."""
    machine = FakeMachine(engine("growing"))
    monkeypatch.setattr(
        TensorrtRuntime,
        "unavailable",
        lambda self, artifact=None: None if self.name == "tensorrt-rtx" else "not here",
    )
    monkeypatch.setattr(
        TensorrtRuntime,
        "open",
        lambda self, artifact, threads=None: EngineRunner(
            artifact, machine.context, machine.device
        ),
    )
    monkeypatch.setattr(
        gpu, "here", lambda: gpu.Gpu(name="RTX of paper", capability="8.9", driver="13.0")
    )
    return machine


def test_verify_adds_the_numbers_and_remembers_them(engine, here, few_cases) -> None:
    report = verify(engine("growing"))
    assert report.passed
    assert report.numbers == "passed on RTX of paper (compute capability 8.9)"
    own = {row.case for row in report.rows if row.runtime == "tensorrt-rtx"}
    assert {"1x1, past 64", "1x32, past 0", "3x1, past 0", "1x8, past 0"} <= own
    assert "1x512, past 0" not in own
    assert any("outside of the profiles of tensorrt-rtx" in line for line in report.left_out)
    again = verify(engine("growing"), runtimes=["onnxruntime"])
    assert again.passed
    assert again.numbers == report.numbers


def test_wrong_numbers_fail_and_are_not_forgotten(engine, here, few_cases) -> None:
    here.wrong = 0.5
    assert verify(engine("growing"), runtimes=["tensorrt-rtx"]).status == "failed"
    later = verify(engine("growing"), runtimes=["onnxruntime"])
    assert later.status == "failed"
    assert later.numbers == "failed on RTX of paper (compute capability 8.9)"
    (engine("growing").path / "evidence.json").unlink()


@without_gpu
def test_without_a_gpu_the_runtime_says_what_is_missing(engine) -> None:
    with pytest.raises(UnavailableError, match=r"tensorrt-rtx': .*NVIDIA driver"):
        open_session(engine("growing"), "tensorrt-rtx")


@with_gpu
@pytest.mark.parametrize("cache", ["growing", "fixed"])
def test_the_gpu_that_is_here_computes_what_the_model_says(tiny, cache, tmp_path) -> None:
    x = tokens(2, 12)
    built = build_engine(
        tiny("tensorrt", "float16", cache),
        out=tmp_path / "engine",
        profiles=PROFILES[cache],
        compute_capabilities=[gpu.here().capability],
        engine="tensorrt-rtx",
        cache=False,
    )
    with open_session(built) as model:
        whole = model.start(batch=2, capacity=CAPACITY).step(x)
    with open_session(built, "tensorrt-rtx") as session:
        for place in ("cpu", "cuda"):
            stream = session.start(batch=2)
            spans = ((0, 7), (7, 8), (8, 9), (9, 10), (10, 12))
            parts = [stream.step(x[:, a:b].to(place)) for a, b in spans]
            assert {part.device.type for part in parts} == {place}
            found = torch.cat(parts, dim=1).cpu()
            torch.testing.assert_close(found, whole, rtol=0, atol=ATOL)


def test_a_runtime_of_engines_refuses_what_it_does_not_run(engine, tiny) -> None:
    with pytest.raises(UnavailableError, match=r"plan is one of tensorrt-rtx's"):
        open_session(engine("growing"), "tensorrt")
    with pytest.raises(UnavailableError, match=r"runs engines; .*rope-export build"):
        open_session(tiny(), "tensorrt-rtx")

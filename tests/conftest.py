"""What the tests share: real weights, and artifacts made once."""

import gc
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from rope_export import Artifact, export, open_session
from rope_export.errors import UnavailableError
from rope_export.parity.cases import Case, regular_cases
from rope_export.runtimes import all_runtimes, openvino, web
from rope_export.runtimes.browser import Page
from rope_export.runtimes.onnxruntime import OnnxRuntime
from rope_export.sessions import Session

pytest.register_assert_rewrite("tests.support")

TINY = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_hidden_layers": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
}


def taking_turns(combinations: Iterable[tuple[object, ...]]) -> list[object]:
    """One of every two combinations, the first of a pair and then the second of the next; the
    others are behind the long marker."""
    return [
        one if (at + at // 2) % 2 == 0 else pytest.param(*one, marks=pytest.mark.long)
        for at, one in enumerate(combinations)
    ]


ON_EVERY_MACHINE = ("eager", "onnxruntime", "reference")
"""Runtimes that come with what the tests need."""


class OneRuntime:
    """A runtime that a test runs on, by name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def open(self, artifact: Artifact) -> Session:
        """A session on it; the test is skipped with the reason where it cannot run the artifact."""
        try:
            return open_session(artifact, self.name)
        except UnavailableError as error:
            pytest.skip(str(error))


def _every_runtime() -> Iterable[object]:
    """Each runtime that is here, and one parameter that is skipped for those that are not."""
    reasons = {name: one.unavailable() for name, one in all_runtimes().items()}
    for name in ON_EVERY_MACHINE:
        assert reasons[name] is None, reasons[name]
    yield from (name for name, reason in reasons.items() if reason is None)
    missing = "; ".join(f"{name!r}: {reason}" for name, reason in reasons.items() if reason)
    if missing:
        yield pytest.param("not here", marks=pytest.mark.skip(reason=f"runtimes {missing}"))


@pytest.fixture(scope="module", params=list(_every_runtime()))
def runtime(request: pytest.FixtureRequest) -> OneRuntime:
    """Each runtime there is: a test that takes it runs on all, and is skipped with the reason where
    one is not on this machine."""
    return OneRuntime(request.param)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Leave what was imported until now out of garbage collection: looking through millions of
    objects of torch and transformers, again and again, takes longer than many a test."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


@pytest.fixture(scope="session", autouse=True)
def one_thread_of_each_runtime() -> Iterator[None]:
    """Sessions compute on one thread unless a test asks for more: a second one that
    waits for work takes a third of the time of a verdict on a tiny layer, and more beside the other
    processes. PyTorch has the same from `OMP_NUM_THREADS` in scripts/test."""
    options = OnnxRuntime.options

    def with_one(runtime: OnnxRuntime) -> Any:
        made = options(runtime)
        made.intra_op_num_threads = 1
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OnnxRuntime, "options", with_one)
        patch.setitem(openvino.HINTS, "INFERENCE_NUM_THREADS", 1)
        patch.setattr(web, "Page", lambda threads: Page(threads or 1))
        yield


@pytest.fixture
def short_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """`verify` without its prompts of 512 tokens, which take nearly half of the time of a tiny
    layer: for tests about what a layer computes. Those of tests/properties/test_parity.py and of
    real weights have all cases."""

    def shorter(*args: Any, **options: Any) -> Iterator[Case]:
        return (case for case in regular_cases(*args, **options) if case.sequence < 512)

    monkeypatch.setattr("rope_export.parity.subjects.layer.regular_cases", shorter)


@pytest.fixture
def known_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """`bench` and `tune` without measuring the machine, which takes seconds, and has a test of its
    own; on one thread, as threads that wait for one another take longest."""
    from rope_export.bench.roofline import Limits

    limits = Limits(threads=1, bandwidth=48e9, rate=119e9, cache_bytes=0)
    monkeypatch.setattr("rope_export.bench.harness.measured_limits", lambda threads: limits)
    monkeypatch.setattr("rope_export.bench.harness.cores", lambda: 1)


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A Ray cluster of three machines with a processor each; the test is skipped without Ray."""
    pytest.importorskip("ray", reason="the package 'ray' is not installed")
    from tests.support.machines import machines

    with machines() as started:
        yield started


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M's real weights, fetched into the ignored folder `checkpoints/` if not there."""
    from scripts.fetch_smollm2 import DEFAULT_OUT, fetch

    return fetch(DEFAULT_OUT)


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The GGUF file that those weights are taken from, beside them."""
    from scripts.fetch_smollm2 import DEFAULT_GGUF, fetch_gguf

    return fetch_gguf(DEFAULT_GGUF)


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.json"
    path.write_text(json.dumps(TINY))
    return path


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of this run have in common."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def exported(shared: Path) -> Callable[..., Artifact]:
    """Artifacts of a source, each made once for all tests and processes; copy one before changing
    it. A test that is about what happens while an artifact is made calls `export` itself.

    source: a config, of which a file is made, or the path of something that stays as it is.
    """

    def make(source: dict[str, Any] | Path, **options: Any) -> Artifact:
        content = source if isinstance(source, dict) else str(source)
        words = json.dumps([content, options], sort_keys=True)
        out = shared / hashlib.sha256(words.encode()).hexdigest()[:16]
        with FileLock(f"{out}.lock"):
            if out.exists():
                return Artifact.open(out)
            if isinstance(source, dict):
                source = out.with_suffix(".json")
                source.write_text(json.dumps(content))
            return export(source, out=out, **options)

    return make


@pytest.fixture(scope="session")
def tiny(exported: Callable[..., Artifact]) -> Callable[..., Artifact]:
    """Artifacts of the tiny config, by the options that most tests differ in."""

    def make(
        lowering: str = "standard",
        dtype: str = "float32",
        cache: str = "growing",
        padding: bool = False,
    ) -> Artifact:
        return exported(TINY, lowering=lowering, dtype=dtype, cache=cache, padding=padding)

    return make

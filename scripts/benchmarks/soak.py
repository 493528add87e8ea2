"""Long runs of one artifact: `python -m scripts.benchmarks.soak --seconds 60 --steps 10000`.

Decodes into a fixed cache for thousands of steps beside a growing one, then has eight threads use
one session, eight streams of one session, and eight sessions of one process, and compares every
answer. --write writes docs/benchmarks/soak.md.
"""

import argparse
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import psutil

from rope_export import AttentionSpec, export, open_session
from rope_export.arrays import to_numpy
from rope_export.artifacts.artifact import Artifact
from rope_export.artifacts.deployed import file_weights
from rope_export.bench.markdown import table_lines
from rope_export.bench.proof import apart
from rope_export.environment import cpu_name
from rope_export.parity import frequencies
from rope_export.parity.bounds import floors, tolerance
from rope_export.parity.layer.chain import longest_reduction
from rope_export.parity.layer.deviations import ceiling
from rope_export.parity.layer.reference import ReferenceLayer
from rope_export.parity.metrics import errors
from rope_export.sessions import Session

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "benchmarks" / "soak.md"
DEFAULT = ROOT / "checkpoints" / "smollm2-135m"
THREADS = 8
SAMPLES = 100
"""Steps at which the answer over a fixed cache is compared with that over a growing one."""

SMALL = 8_000_000
"""Bytes that Python and its allocator may take meanwhile; a copy of the cache of every hundredth of
10,000 steps would be more."""

Arrays = dict[Any, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One run. wrong: answers that were not what they should be. grown: bytes of memory that were
    added while it decoded."""

    what: str
    calls: int
    wrong: int
    figures: str
    grown: int = 0


def decode(fixed: Artifact, growing: Artifact, steps: int) -> Finding:
    """Decode `steps` tokens; every hundredth is compared with the growing cache's answer."""
    spec = AttentionSpec.from_json(fixed.facts.spec)
    hidden = np.random.default_rng(0).standard_normal(
        (steps, 1, 1, spec.hidden_size), dtype=np.float32
    )
    every, answers = max(1, steps // SAMPLES), {}
    process, settled = psutil.Process(), 0
    with open_session(fixed) as session:
        stream = session.start(capacity=steps)
        for at, token in enumerate(hidden):
            answer = stream.step(token)
            if at % every == 0 or at == steps - 1:
                answers[at] = to_numpy(answer)
            if at == steps // 10:
                settled = process.memory_info().rss
        grown = process.memory_info().rss - settled
    used = list(_compared(growing, hidden, answers))
    return Finding(
        what=f"{steps} decode steps into one fixed cache, filled to the last entry",
        calls=steps,
        wrong=sum(not share <= 1 for share in used),
        grown=max(grown, 0),
        figures=(
            f"memory grew by {max(grown, 0) / 1e6:.1f} MB over the last nine tenths; {len(used)} "
            f"steps compared with a growing cache, at most {100 * max(used):.0f} % of the tolerance"
        ),
    )


def _compared(
    growing: Artifact, hidden: np.ndarray, answers: dict[int, np.ndarray]
) -> Iterator[float]:
    """Distance of each answer to the growing cache's, as a share of what it may be: each of the two
    is within its tolerance of the truth, so they are apart by two of them at most."""
    spec = AttentionSpec.from_json(growing.facts.spec)
    weights = {name: w.double().numpy() for name, w in file_weights(growing).items()}
    layer = ReferenceLayer(spec, weights, frequencies(spec))
    with open_session(growing) as session:
        stream, interface = session.start(), session.interface
        types = [interface.input(pair.input) for pair in interface.caches]
        empty = {x.name: np.zeros(x.sized({"batch": 1, "past": 0})) for x in types}
        for at, token in enumerate(hidden):
            cache = dict(stream._caches.tensors)
            answer = to_numpy(stream.step(token))
            if at not in answers:
                continue
            inputs = {"hidden_states": token, "position_ids": np.array([[at]]), **(cache or empty)}
            trace = layer(inputs)
            bound = ceiling(layer, trace)["attention_output"]
            floor = floors(
                spec.dtype,
                longest_reduction(spec, at + 1),
                errors(bound, trace.output),
                trace.output.size,
            )
            yield apart(answers[at], answer) / (2 * tolerance(0.0, floor["relative L2"]))


def one_session(artifact: Artifact, seconds: float) -> Finding:
    """Threads call `run` of one session, each with its own call, whose answer is known."""
    with open_session(artifact) as session:
        calls = [_call(session, 1 + n % 3, 1 + n % 4, 5 * n) for n in range(THREADS)]
        return _together(
            f"{THREADS} threads in run of one session",
            [_repeat(session, inputs, session.run(inputs), seconds) for inputs in calls],
        )


def streams(artifact: Artifact, seconds: float) -> Finding:
    """Streams of one session, each decoding its own sequence over and over."""
    with open_session(artifact) as session:
        return _together(
            f"{THREADS} streams of one session, a thread each",
            [_decode_again(session, n, seconds) for n in range(THREADS)],
        )


def sessions(artifact: Artifact, seconds: float) -> Finding:
    """Sessions of one process, which share the weights."""
    process = psutil.Process()
    with open_session(artifact) as first:
        inputs = _call(first, 2, 3, 7)
        expected, before = first.run(inputs), process.memory_info().rss
        opened = [open_session(artifact) for _ in range(THREADS)]
        added = process.memory_info().rss - before
        finding = _together(
            f"{THREADS} sessions of one process, a thread each",
            [_repeat(session, inputs, expected, seconds) for session in opened],
        )
        for session in opened:
            session.close()
    more = f"; opening them took {max(added, 0) / 1e6:.1f} MB"
    return Finding(
        what=finding.what, calls=finding.calls, wrong=finding.wrong, figures=finding.figures + more
    )


Work = Callable[[], tuple[int, int]]
"""A function that returns how many calls it made, and how many of their answers were wrong."""


def _together(what: str, works: list[Work]) -> Finding:
    start = time.perf_counter()
    with ThreadPoolExecutor(len(works)) as pool:
        done = [future.result() for future in [pool.submit(work) for work in works]]
    seconds = time.perf_counter() - start
    calls = sum(calls for calls, _ in done)
    return Finding(
        what=what,
        calls=calls,
        wrong=sum(wrong for _, wrong in done),
        figures=f"{seconds:.0f} s, {calls / seconds:.0f} calls a second together",
    )


def _repeat(session: Session, inputs: Arrays, expected: Mapping[str, Any], seconds: float) -> Work:
    def work() -> tuple[int, int]:
        calls = wrong = 0
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            outputs = session.run(inputs)
            calls += 1
            wrong += any(not np.array_equal(outputs[n], x) for n, x in expected.items())
        return calls, wrong

    return work


def _decode_again(session: Session, seed: int, seconds: float, length: int = 32) -> Work:
    width = session.inputs[0].shape[2]
    assert isinstance(width, int)
    hidden = np.random.default_rng(seed).standard_normal((length, 1, 1, width), dtype=np.float32)

    def pass_() -> np.ndarray:
        return np.concatenate([to_numpy(stream.step(token)) for token in hidden])

    stream = session.start(capacity=length)
    expected = pass_()

    def work() -> tuple[int, int]:
        calls = wrong = 0
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            stream.reset()
            wrong += not np.array_equal(pass_(), expected)
            calls += length
        return calls, wrong

    return work


def _call(session: Session, batch: int, sequence: int, past: int) -> Arrays:
    """A call on a fixed cache with room for two more entries than it fills."""
    stream = np.random.default_rng(past)
    axes = {"batch": batch, "sequence": sequence, "capacity": past + sequence + 2}
    inputs: Arrays = {}
    interface = session.interface
    for tensor in interface.inputs:
        shape = tensor.sized(axes)
        if tensor.name == interface.lengths:
            inputs[tensor.name] = np.full(shape, past)
        elif tensor.name == interface.positions:
            inputs[tensor.name] = np.broadcast_to(past + np.arange(sequence), shape).copy()
        else:
            inputs[tensor.name] = stream.standard_normal(shape, dtype=np.float32)
    # What lies beyond the entries of a cache after a call is nobody's: it is zero before and after.
    for pair in interface.caches:
        inputs[pair.input][(slice(None),) * pair.axis + (slice(past, None),)] = 0
    return inputs


def long_runs(source: Path, steps: int, seconds: float) -> Iterator[Finding]:
    """Every run on layer 0 of `source`, in the lowering that "auto" takes for a fixed cache."""
    with tempfile.TemporaryDirectory() as name:
        fixed = export(source, out=Path(name) / "fixed", cache="fixed")
        growing = export(source, out=Path(name) / "growing", cache="growing")
        yield decode(fixed, growing, steps)
        for run in (one_session, streams, sessions):
            yield run(fixed, seconds)


def page(findings: list[Finding], command: str) -> Iterator[str]:
    yield "# Long runs"
    yield ""
    yield (
        f"Reprinted by `{command}`. {date.today()}, {cpu_name()}, onnxruntime "
        f"{onnxruntime.__version__}, Python {platform.python_version()}. Layer 0 of SmolLM2-135M "
        f"in float32; every answer of the threads is compared bit for bit with what one thread got."
    )
    yield ""
    rows = [(x.what, x.calls, x.wrong, x.figures) for x in findings]
    yield from table_lines(("run", "calls", "wrong", ""), rows)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.benchmarks.soak", description=__doc__)
    parser.add_argument("source", nargs="?", type=Path, default=DEFAULT)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(ROOT)}")
    options = parser.parse_args()
    findings = []
    for finding in long_runs(options.source, options.steps, options.seconds):
        findings.append(finding)
        print(f"{finding.what}: {finding.calls} calls, {finding.wrong} wrong; {finding.figures}")
    if options.write:
        command = "python -m scripts.benchmarks.soak --write"
        PAGE.write_text("\n".join(page(findings, command)) + "\n", encoding="utf-8")
    return 1 if any(finding.wrong or finding.grown > SMALL for finding in findings) else 0


if __name__ == "__main__":
    sys.exit(main())

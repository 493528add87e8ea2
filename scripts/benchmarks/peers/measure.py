"""Cases and errors against the float64 reference, and times in alternating blocks."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import ParamSpec, TypeVar

import numpy as np

from rope_export.bench.timing import Call as TimedCall
from rope_export.bench.timing import Plan, measure
from rope_export.checkpoints import open_model
from rope_export.parity import frequencies
from rope_export.parity.layer.reference import ReferenceLayer
from rope_export.parity.metrics import SCALED_MAX, errors
from rope_export.spec import AttentionSpec
from scripts.benchmarks.peers.contenders import Call, Contender

BATCH = 2
FOLDERS = re.compile(r"(?<![\w.])/\S*/(?=[^/\s]+\.(?:onnx|data|py|json|cc|h)\b)")
P = ParamSpec("P")
T = TypeVar("T")
Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Case:
    """chunks: new tokens of each call. padded: padding slots on the left of the second row.
    judged: index of the first chunk whose output is judged; what comes before fills the cache."""

    chunks: tuple[int, ...]
    padded: int = 0
    judged: int = 0


CASES = {
    "prefill": Case(chunks=(24,)),
    "decode": Case(chunks=(23, 1, 1), judged=1),
    "left padding": Case(chunks=(9, 1), padded=3),
    "batched chunk": Case(chunks=(9, 5), judged=1),
}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A call whose time is taken. warm, timed: calls of a block, discarded and counted."""

    batch: int
    new: int
    past: int
    warm: int
    timed: int

    def __str__(self) -> str:
        kind = f"decode, past {self.past:,}" if self.past else f"prefill, {self.new} tokens"
        return f"{kind}, batch {self.batch}"


SHAPES = (
    Shape(batch=1, new=1, past=512, warm=4, timed=20),
    Shape(batch=1, new=1, past=2048, warm=4, timed=20),
    Shape(batch=4, new=1, past=1024, warm=4, timed=20),
    Shape(batch=1, new=128, past=0, warm=2, timed=6),
    Shape(batch=1, new=512, past=0, warm=1, timed=4),
)


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Milliseconds: the median of the medians of every round, and the smallest and largest."""

    median: float
    least: float
    most: float


class Reference:
    """The layer of a checkpoint in float64, and drawn inputs for it."""

    def __init__(self, checkpoint: Path) -> None:
        source = open_model(checkpoint).layer()
        self.spec: AttentionSpec = source.spec
        weights = {name: x.numpy() for name, x in source.weights().items()}
        self.layer = ReferenceLayer(self.spec, weights, frequencies(self.spec))

    def error(self, contender: Contender, case: Case) -> float:
        """The largest error of the judged tokens, relative to the largest output of them.

        Padding is not judged. The contender fills its cache itself; the reference sees all tokens
        at once. Raises: what the contender raises.
        """
        hidden, positions, mask = _inputs(self.spec, case)
        exact = self.layer(
            {"hidden_states": hidden, "position_ids": positions, "attention_mask": mask}
        ).output
        state, outputs = contender.begin(BATCH), []
        for start, end in pairwise(accumulate(case.chunks, initial=0)):
            call = Call(
                hidden=np.ascontiguousarray(hidden[:, start:end]),
                positions=np.ascontiguousarray(positions[:, start:end]),
                mask=np.ascontiguousarray(mask[:, :end]),
            )
            output, state = contender.call(state, call)
            outputs.append(output)
        judged = mask == 1
        judged[:, : sum(case.chunks[: case.judged])] = False
        output = np.concatenate(outputs, axis=1)[judged]
        return errors(output - exact[judged], exact[judged])[SCALED_MAX]

    def errors(self, contender: Contender) -> dict[str, float | str]:
        """The error in every case, or why there is none."""
        return {name: _or_refused(self.error, contender, case) for name, case in CASES.items()}


def _inputs(spec: AttentionSpec, case: Case) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hidden states, positions counted from each row's first real token, and the mask."""
    total = sum(case.chunks)
    generator = np.random.default_rng(total)
    hidden = generator.standard_normal((BATCH, total, spec.hidden_size), dtype=np.float32)
    mask = np.ones((BATCH, total), np.int64)
    mask[1, : case.padded] = 0
    return hidden, (mask.cumsum(axis=1) - 1).clip(min=0), mask


def latencies(
    contenders: Mapping[str, Contender],
    hidden: int,
    rounds: int,
    progress: Progress = lambda step: None,
    shapes: tuple[Shape, ...] = SHAPES,
    seed: int = 0,
) -> dict[str, dict[str, Latency | str]]:
    """The time of every shape in every contender, or why there is none."""
    table: dict[str, dict[str, Latency | str]] = {name: {} for name in contenders}
    for shape in shapes:
        progress(f"timing {shape}")
        calls: dict[str, TimedCall] = {}
        for name, contender in contenders.items():
            call = _or_refused(_repeatable, contender, shape, hidden)
            if isinstance(call, str):
                table[name][str(shape)] = call
            else:
                calls[name] = call
        plan = Plan(
            rounds=rounds,
            calls=shape.timed,
            seconds=0.0,
            warm_calls=shape.warm,
            warm_seconds=0.0,
            seed=seed,
        )
        for name, timing in measure(calls, plan).items():
            table[name][str(shape)] = Latency(
                median=1e3 * timing.median, least=1e3 * timing.low, most=1e3 * timing.high
            )
    return table


def _repeatable(contender: Contender, shape: Shape, hidden: int) -> TimedCall:
    """A call of the shape that starts from the same cache each time; made once, to see that it can
    be. Raises: what the contender raises."""
    generator = np.random.default_rng(shape.past)
    total = shape.past + shape.new
    call = Call(
        hidden=generator.standard_normal((shape.batch, shape.new, hidden), dtype=np.float32),
        positions=np.tile(np.arange(shape.past, total), (shape.batch, 1)),
        mask=np.ones((shape.batch, total), np.int64),
    )
    state = contender.begin(shape.batch, shape.past)
    contender.call(state, call)
    return lambda: contender.call(state, call)


def _or_refused(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | str:
    """The result of a function, or "refused: " and the first line of what it raised."""
    try:
        return function(*args, **kwargs)
    except Exception as error:  # onnxruntime's own kinds derive from Exception alone
        return refusal(error)


def refusal(error: Exception) -> str:
    """One line that says why there is no figure: of onnxruntime's, what the operator says, and
    without the folders that files of this machine lie in."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    message = re.sub(r"^.*Status Message: ", "", lines[0])
    return "refused: " + FOLDERS.sub("", message)

"""How long calls take, in alternating blocks.

A contender's idle thread pool still spins for a while after its last call and takes cores from the
next one, so contenders do not alternate call by call: each has a block of calls, the first of
which are thrown away, and the blocks come in another order in every round.
"""

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from rope_export.errors import InputError

Call = Callable[[], object]
Clock = Callable[[], float]

RESAMPLES = 2_000
CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How contenders are timed. rounds: blocks of each. seconds, calls: the minimum of a block.
    warm_seconds, warm_calls: what comes before a block and is not counted, at least both.
    seed: of the order in each round and of the resampling."""

    rounds: int = 7
    seconds: float = 0.15
    calls: int = 3
    warm_seconds: float = 0.05
    warm_calls: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.calls < 1:
            raise InputError(
                f"rounds={self.rounds}, calls={self.calls}: there must be one or more."
            )


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What one contender took, in seconds a call.

    rounds: median of each block. calls: how many were counted. median: of the rounds. low, high:
    smallest and largest round. interval: bootstrap confidence interval of the median.
    """

    rounds: tuple[float, ...]
    calls: int
    median: float
    low: float
    high: float
    interval: tuple[float, float]


def measure(
    calls: Mapping[str, Call],
    plan: Plan,
    clock: Clock = time.perf_counter,
    progress: Callable[[float], None] = lambda done: None,
) -> dict[str, Timing]:
    """Time every call, block by block; progress is called with the share that is done."""
    order = np.random.default_rng(plan.seed)
    names = list(calls)
    blocks: dict[str, list[list[float]]] = {name: [] for name in names}
    for number in range(plan.rounds):
        for at, name in enumerate(order.permutation(len(names))):
            progress((number + at / len(names)) / plan.rounds)
            blocks[names[name]].append(block(calls[names[name]], plan, clock))
    return {name: summarized(samples, plan.seed) for name, samples in blocks.items()}


def block(call: Call, plan: Plan, clock: Clock) -> list[float]:
    """Seconds of each counted call of one block."""
    start, warm = clock(), 0
    while warm < plan.warm_calls or clock() - start < plan.warm_seconds:
        call()
        warm += 1
    samples: list[float] = []
    with _no_collection():
        start = clock()
        while len(samples) < plan.calls or clock() - start < plan.seconds:
            before = clock()
            call()
            samples.append(clock() - before)
    return samples


def summarized(blocks: Sequence[Sequence[float]], seed: int) -> Timing:
    """The figures of one contender's blocks.

    Calls of one block share whatever else the machine did meanwhile, so blocks are what is drawn
    again and again for the interval, not calls.
    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    rounds = np.array([np.median(samples) for samples in blocks])
    again = np.random.default_rng(seed).integers(0, len(rounds), (RESAMPLES, len(rounds)))
    medians = np.median(rounds[again], axis=1)
    low, high = np.quantile(medians, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Timing(
        rounds=tuple(map(float, rounds)),
        calls=sum(map(len, blocks)),
        median=float(np.median(rounds)),
        low=float(rounds.min()),
        high=float(rounds.max()),
        interval=(float(low), float(high)),
    )


@contextmanager
def _no_collection() -> Iterator[None]:
    """Runs the block without Python's garbage collector, whose pauses belong to no contender."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()

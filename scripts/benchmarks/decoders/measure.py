"""Blocks of generated tokens that alternate, and the bandwidth of the memory between them."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import numpy as np

from rope_export.bench.roofline import measured_bandwidth
from scripts.benchmarks.decoders.workers import Answer, Worker, WorkerError

NEW = 33
"""Tokens of a block: the first, with the prompt, and 32 that are timed after it."""
PAUSE_SECONDS = 0.1
"""Between blocks, in which the threads of the last one fall asleep."""
WARM = 2
"""Tokens of each process's first block, after the longest prompt, which is not counted."""
TEXTS = 32
"""Tokens of an answer that is compared."""


@dataclass
class Rates:
    """What one way gave at one past, a figure a round: tokens a second, and the seconds to the
    first token. problem: why there are none."""

    decode: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    problem: str | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.decode)

    @property
    def first_median(self) -> float:
        return statistics.median(self.first)


def measured(
    open_ways: Callable[[], AbstractContextManager[Mapping[str, Worker]]],
    text: Sequence[int],
    *,
    pasts: Sequence[int],
    rounds: int,
    threads: int,
    progress: Callable[[str], None],
    seed: int = 0,
) -> tuple[dict[str, dict[int, Rates]], list[float]]:
    """Rates by way and past, and the bandwidth in bytes a second, measured once a round.

    open_ways: starts a process for each way. Where its weights come to lie in memory makes up to a
    tenth of its speed, so each round has new ones. text: ids of a text of at least as many tokens
    as the largest past. Ways come in another order in every round.
    """
    order = np.random.default_rng(seed)
    rates: dict[str, dict[int, Rates]] = {}
    bandwidths: list[float] = []
    for number in range(rounds):
        with open_ways() as workers:
            for worker in workers.values():
                _block(worker, text[: max(pasts)], WARM, Rates())
            for past in pasts:
                progress(f"round {number + 1} of {rounds}, past {past}")
                for at in order.permutation(len(workers)):
                    name = list(workers)[at]
                    found = rates.setdefault(name, {past: Rates() for past in pasts})[past]
                    answer = _block(workers[name], text[:past], NEW, found)
                    if answer is not None:
                        found.decode.append(answer.rate)
                        found.first.append(answer.seconds[0])
            bandwidths.append(measured_bandwidth(threads))
    return rates, bandwidths


def _block(worker: Worker, ids: Sequence[int], new: int, rates: Rates) -> Answer | None:
    if rates.problem is not None:
        return None
    time.sleep(PAUSE_SECONDS)
    try:
        return worker.generate(ids, new)
    except WorkerError as error:
        rates.problem = str(error)
        return None


def agreements(
    workers: Mapping[str, Worker], prompts: Sequence[Sequence[int]], reference: str
) -> dict[str, int | str]:
    """How many tokens of each way's greedy answers are the reference's, up to the first of an
    answer that is not; or why there are none."""
    texts: dict[str, list[list[int]]] = {}
    agreeing: dict[str, int | str] = {}
    for name, worker in workers.items():
        try:
            texts[name] = [worker.generate(prompt, TEXTS).ids for prompt in prompts]
        except WorkerError as error:
            agreeing[name] = str(error)
    wanted = texts.get(reference)
    for name, own in texts.items():
        if wanted is None:
            agreeing[name] = "not compared"
        else:
            agreeing[name] = sum(_leading(a, b) for a, b in zip(own, wanted, strict=True))
    return agreeing


def _leading(own: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens are the same before the first that is not."""
    pairs = enumerate(zip(own, other, strict=True))
    return next((at for at, (a, b) in pairs if a != b), len(own))

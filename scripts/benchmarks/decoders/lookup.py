"""Answers that repeat their prompt, and others, with candidates from the text and without."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rope_export.sessions import Session, open_session
from rope_export.sessions.generation import Texts, settings_of
from scripts.benchmarks.decoders.measure import PAUSE_SECONDS
from scripts.benchmarks.decoders.workers import Answer, Way, opened

LONGEST = 128
"""Tokens of an answer, at most."""

TEXT = (
    "The rotation of queries and keys by their positions lets attention see how far two tokens are "
    "apart. Each pair of features is rotated by an angle that grows with the position, quickly for "
    "the first pairs and slowly for the last ones. The product of a query and a key then depends "
    "on the distance alone."
)
CODE = (
    "def mean(values):\n    total = 0\n    for value in values:\n        total += value\n"
    "    return total / len(values)\n"
)
PROMPTS = {
    "repeating": (
        f"Repeat this text exactly, word for word:\n\n{TEXT}",
        f"Copy the following Python function and rename it to average:\n\n{CODE}",
        f"Rewrite this text and correct its spelling, but change nothing else:\n\n{TEXT}",
        f"Extract the first two sentences of this text, word for word:\n\n{TEXT}",
    ),
    "elsewhere": (
        "Tell me a short story about a lighthouse and a storm.",
        "Why is the sky blue? Explain it to a child.",
        "Name three uses of a paper clip, with a sentence on each.",
        "Write a polite letter that declines an invitation to a wedding.",
    ),
}
"""Messages of a user by kind: what answers to some repeat, and others."""


@dataclass
class Pair:
    """Tokens a second without candidates and with them, a figure a round.

    tokens: of the answer without. looked_up: of the one with. same: the text is. short: of each
    token with candidates that a pass of one token does not choose, how far its logit is below the
    largest, in standard deviations of the logits.
    """

    plain: list[float] = field(default_factory=list)
    lookup: list[float] = field(default_factory=list)
    tokens: int = 0
    looked_up: int = 0
    same: bool = True
    short: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        return statistics.median(b / a for a, b in zip(self.plain, self.lookup, strict=True))


def looked_up(
    folder: Path,
    scratch: Path,
    *,
    threads: int,
    rounds: int,
    progress: Callable[[str], None],
) -> dict[str, list[Pair]]:
    """The pairs of every prompt by its kind; blocks alternate, the first round is not counted.

    folder: a decoder with the logits of every token.
    Raises: WorkerError.
    """
    texts, ends = Texts(folder), sorted(settings_of(folder).ends)
    session = open_session(folder, threads=threads)
    ways = [Way(name=kind, kind=kind, folder=folder) for kind in ("ours", "lookup")]
    results: dict[str, list[Pair]] = {}
    with opened(ways, threads, scratch) as (workers, refused):
        if refused:
            return results
        for kind, prompts in PROMPTS.items():
            results[kind] = []
            for at, prompt in enumerate(prompts):
                progress(f"with candidates: {kind}, {at + 1} of {len(prompts)}")
                ids, pair = texts.prompt(prompt, chat=True), Pair()
                for number in range(rounds + 1):
                    answers = {}
                    for name in ("ours", "lookup")[:: 1 if number % 2 else -1]:
                        time.sleep(PAUSE_SECONDS)
                        answers[name] = workers[name].generate(ids, LONGEST, ends)
                    _add(pair, answers["ours"], answers["lookup"], counted=number > 0)
                if not pair.same:
                    pair.short = _short(session, ids, answers["lookup"].ids)
                results[kind].append(pair)
    return results


def _short(session: Session, prompt: Sequence[int], answer: Sequence[int]) -> list[float]:
    """`Pair.short` of an answer, which passes of one token read."""
    stream = session.start(capacity=len(prompt) + len(answer))
    found, step = [], list(prompt)
    for token in answer:
        logits = np.asarray(stream.step(np.array([step])))[0, -1].astype(np.float64)
        if token != logits.argmax():
            found.append(float((logits.max() - logits[token]) / logits.std()))
        step = [token]
    return found


def _add(pair: Pair, plain: Answer, lookup: Answer, *, counted: bool) -> None:
    pair.tokens, pair.looked_up = len(plain.ids), len(lookup.ids)
    pair.same = pair.same and plain.ids == lookup.ids
    if counted and len(plain.ids) > 1:
        pair.plain.append(plain.rate)
        pair.lookup.append(lookup.rate)

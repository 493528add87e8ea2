"""The loop: one pass over the prompts, and one over every token that follows."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from rope_export.sessions.generation.prompts import prefill
from rope_export.sessions.generation.sampling import Chooser, Sampling

if TYPE_CHECKING:
    from rope_export.sessions.session import Session

Receive = Callable[[int, int | None], bool]
"""Takes a row and its next token, or nothing once the row has ended; whether the row is to end with
the token."""

Finish = Literal["end", "stop", "length", "full"]
"""Why a row ended: with a token that ends texts, with a stop text, with as many tokens as were
asked for, or because cache or positions were used up."""


@dataclass
class Answer:
    """What followed one prompt: its tokens, without one that ends it."""

    ids: list[int] = field(default_factory=list)
    finish: Finish | None = None


@dataclass(kw_only=True)
class Speed:
    """How long the passes took, in seconds, and how many there were after the prompts'.

    tokens: chosen after those that the prompts' pass gave.
    """

    prompt: float = 0.0
    decode: float = 0.0
    passes: int = 0
    tokens: int = 0

    def add(self, other: "Speed") -> None:
        """Counts what came after this."""
        self.prompt += other.prompt
        self.decode += other.decode
        self.passes += other.passes
        self.tokens += other.tokens

    @property
    def tokens_per_second(self) -> float | None:
        return self.tokens / self.decode if self.tokens and self.decode else None


class Rows:
    """The answers of all prompts as they grow."""

    def __init__(
        self, count: int, ends: frozenset[int], *, longest: int, wanted: int, receive: Receive
    ) -> None:
        """longest: tokens that an answer has room for. wanted: that it may have."""
        self.answers = [Answer() for _ in range(count)]
        self._ends, self._receive = ends, receive
        self._most = min(longest, wanted)
        self._at_last: Finish = "length" if wanted <= longest else "full"

    @property
    def open(self) -> bool:
        return any(answer.finish is None for answer in self.answers)

    def room(self, row: int) -> int:
        """How many tokens more a row may have."""
        return self._most - len(self.answers[row].ids)

    def take(self, row: int, token: int) -> bool:
        """Add the next token of a row that has not ended. Returns: whether it goes on."""
        answer = self.answers[row]
        if token in self._ends:
            answer.finish = "end"
        else:
            answer.ids.append(token)
            if self._receive(row, token):
                answer.finish = "stop"
            elif self.room(row) <= 0:
                answer.finish = self._at_last
        if answer.finish is not None:
            self._receive(row, None)
        return answer.finish is None


def decode(
    session: "Session", prompts: Sequence[Sequence[int]], rows: Rows, sampling: Sampling, slots: int
) -> Speed:
    """Let every row of `rows` grow until all have ended.

    slots: of each row's cache, where it is fixed.
    """
    speed, started = Speed(), time.perf_counter()
    capacity = slots if session.interface.cache == "fixed" else None
    stream = session.start(batch=len(prompts), capacity=capacity)
    chooser = Chooser(sampling, len(prompts))
    logits = prefill(stream, prompts)
    speed.prompt = time.perf_counter() - started
    chosen = _take(rows, chooser.choose(logits))
    started = time.perf_counter()
    while rows.open:
        logits = np.asarray(stream.step(np.array(chosen)[:, None]))[:, -1]
        speed.passes += 1
        speed.tokens += sum(answer.finish is None for answer in rows.answers)
        chosen = _take(rows, chooser.choose(logits))
    speed.decode = time.perf_counter() - started
    return speed


def _take(rows: Rows, chosen: list[int]) -> list[int]:
    """Give every open row its token. Returns: the tokens of the next pass; a row that has ended
    repeats some token that nobody looks at."""
    for row, token in enumerate(chosen):
        if rows.answers[row].finish is None:
            rows.take(row, token)
    return chosen

"""How many candidates pay: what passes cost on this machine, and how many were right of late."""

from bisect import bisect_left
from collections import deque
from statistics import median

SIZES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32)
"""Tokens that a pass is made of: few sizes, so that the cost of each is soon known."""

LONGEST = SIZES[-1] - 1
"""Candidates of one pass, at most."""

GUESS = 0.04
"""What a token more adds to a pass, as a share of a pass over one, as long as nobody knows."""

KEPT = 7
"""Measurements of each size of which the median counts."""

MEMORY = 0.92
"""What an earlier observation counts for, beside the one after it."""


NOTHING = (0.0,) * LONGEST


class Costs:
    """Seconds of a pass over n tokens."""

    def __init__(self) -> None:
        self._measured: dict[int, deque[float]] = {}
        self._known: dict[int, float] = {}

    def add(self, size: int, seconds: float) -> None:
        """The first pass of a size pays for memory that later ones have: it counts for what was
        expected of it, if it took longer."""
        if size not in self._measured:
            if 1 in self._known:
                seconds = min(seconds, self.relative(size) * self._known[1])
            self._measured[size] = deque(maxlen=KEPT)
        self._measured[size].append(seconds)
        self._known[size] = median(self._measured[size])

    def relative(self, size: int) -> float:
        """The cost of a pass over `size` tokens beside one over a single token.

        Between two sizes that were measured it grows evenly; after the last as between those.
        """
        if 1 not in self._known:
            return 1 + GUESS * (size - 1)
        if size in self._known:
            return self._cost(size)
        sizes = sorted(self._known)
        at = bisect_left(sizes, size)
        before, cost = sizes[at - 1], self._cost(sizes[at - 1])
        if at < len(sizes):
            share = (size - before) / (sizes[at] - before)
            return cost + share * (self._cost(sizes[at]) - cost)
        slope = (cost - 1) / (before - 1) if before > 1 else GUESS
        return cost + slope * (size - before)

    def _cost(self, known: int) -> float:
        return max(1.0, self._known[known] / self._known[1])


class Trust:
    """How often the first, second, … candidate was right of late, by the width of the run that they
    followed.

    Candidates count whether or not they were checked in a pass: each is compared with what the text
    became, so that knowing costs nothing.
    """

    def __init__(self) -> None:
        self._right: dict[int, list[float]] = {}
        self._seen: dict[int, list[float]] = {}
        self._open: list[tuple[int, int, list[int]]] = []

    def expect(self, width: int, start: int, candidates: list[int]) -> None:
        """Candidates for the tokens of the text from `start` on."""
        if candidates:
            self._open.append((width, start, candidates))

    def compare(self, text: list[int]) -> None:
        """Compare the candidates that are open with what the text is by now."""
        waiting = []
        for width, start, candidates in self._open:
            came = text[start : start + len(candidates)]
            right = 0
            while right < len(came) and came[right] == candidates[right]:
                right += 1
            if right == len(came) < len(candidates):
                waiting.append((width, start, candidates))
            else:
                self._count(width, right, len(candidates))
        self._open = waiting

    def _count(self, width: int, right: int, out_of: int) -> None:
        hits = self._right.setdefault(width, [0.0] * LONGEST)
        seen = self._seen.setdefault(width, [0.0] * LONGEST)
        for at in range(out_of):
            hits[at] = MEMORY * hits[at] + (at < right)
            seen[at] = MEMORY * seen[at] + 1

    def chances(self, width: int) -> list[float]:
        """How likely the first n candidates are all right, for n from 1 on."""
        hits, seen = self._right.get(width, NOTHING), self._seen.get(width, NOTHING)
        guess = chances = 1 - 1 / (width + 1)
        found = []
        for hit, count in zip(hits, seen, strict=True):
            found.append((hit + chances) / (count + 1))
            chances *= guess
        return found


def best_size(costs: Costs, chances: list[float], most: int) -> int:
    """The number of tokens of the next pass that gives the most tokens in a second.

    chances: how likely the first n candidates are all right. most: tokens that a pass may have.
    """
    best, rate, expected, counted = 1, 1.0, 1.0, 1
    for size in SIZES[1:]:
        if size > most:
            break
        expected += sum(chances[counted - 1 : size - 1])
        counted = size
        gain = expected / costs.relative(size)
        if gain > rate:
            best, rate = size, gain
    return best

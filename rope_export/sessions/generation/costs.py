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


class Costs:
    """Seconds of a pass over n tokens."""

    def __init__(self) -> None:
        self._measured: dict[int, deque[float]] = {}

    def add(self, size: int, seconds: float) -> None:
        """The first pass of a size pays for memory that later ones have: it counts for what was
        expected of it, if it took longer."""
        if size not in self._measured:
            one = self._measured.get(1)
            if one:
                seconds = min(seconds, self.relative(size) * median(one))
            self._measured[size] = deque(maxlen=KEPT)
        self._measured[size].append(seconds)

    def relative(self, size: int) -> float:
        """The cost of a pass over `size` tokens beside one over a single token.

        Between two sizes that were measured it grows evenly; after the last as between those.
        """
        known = {at: median(times) for at, times in sorted(self._measured.items())}
        if 1 not in known:
            return 1 + GUESS * (size - 1)
        sizes, costs = list(known), [max(1.0, seconds / known[1]) for seconds in known.values()]
        at = bisect_left(sizes, size)
        if at < len(sizes):
            if sizes[at] == size:
                return costs[at]
            share = (size - sizes[at - 1]) / (sizes[at] - sizes[at - 1])
            return costs[at - 1] + share * (costs[at] - costs[at - 1])
        slope = (costs[-1] - 1) / (sizes[-1] - 1) if len(sizes) > 1 else GUESS
        return costs[-1] + slope * (size - sizes[-1])


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
        hits = self._right.get(width, [0.0] * LONGEST)
        seen = self._seen.get(width, [0.0] * LONGEST)
        prior = 1 - 1 / (width + 1)
        return [
            (hit + prior ** (at + 1)) / (count + 1)
            for at, (hit, count) in enumerate(zip(hits, seen, strict=True))
        ]


def best_size(costs: Costs, chances: list[float], most: int) -> int:
    """The number of tokens of the next pass that gives the most tokens in a second.

    chances: how likely the first n candidates are all right. most: tokens that a pass may have.
    """
    best, rate, expected = 1, 1.0, 1.0
    for size in range(2, most + 1):
        expected += chances[size - 2]
        if size in SIZES and expected / costs.relative(size) > rate:
            best, rate = size, expected / costs.relative(size)
    return best

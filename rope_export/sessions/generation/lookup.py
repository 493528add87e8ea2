"""Candidates for the next tokens: those that followed the same tokens earlier in the text.

Source: Saxena, "Prompt Lookup Decoding" (2023); Yang et al., arXiv:2304.04487, "Inference with
Reference".
"""

from collections.abc import Sequence

WIDEST = 4
"""Tokens at the end of the text that are looked for, at most."""


class Lookup:
    """A text and where each run of up to WIDEST tokens last ended in it."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens: list[int] = []
        self._ends: list[dict[tuple[int, ...], int]] = [{} for _ in range(WIDEST)]
        self._earlier = [-1] * WIDEST
        for token in tokens:
            self.add(token)

    def add(self, token: int) -> None:
        """The text's next token."""
        self.tokens.append(token)
        end = len(self.tokens)
        for at, ends in enumerate(self._ends):
            if end > at:
                run = tuple(self.tokens[end - at - 1 :])
                self._earlier[at] = ends.get(run, -1)
                ends[run] = end

    def candidates(self, count: int) -> tuple[int, list[int]]:
        """Up to `count` tokens that followed the longest run that the text now ends with, where it
        last was before, and how long that run is; none where there is no such run.

        A text that repeats itself faster than `count` goes on repeating.
        """
        for width in range(WIDEST, 0, -1):
            start = self._earlier[width - 1]
            if start >= 0:
                found = self.tokens[start : start + count]
                while len(found) < count:
                    found += found[: count - len(found)]
                return width, found
        return 0, []

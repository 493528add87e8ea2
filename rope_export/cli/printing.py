"""Prints answers as they grow, one after the other: each once those before it have ended."""

import sys
from collections.abc import Sequence

from rope_export.sessions.generation import Texts


class Printer:
    """Takes the tokens of all answers, and prints them in the order of the prompts; several have
    their numbers before them.

    quiet: print nothing.
    """

    def __init__(
        self,
        texts: Texts | None,
        prompts: Sequence[Sequence[int]],
        stops: Sequence[str],
        *,
        quiet: bool,
    ) -> None:
        """texts: decodes tokens to text; without, the tokens themselves are printed."""
        self._growing = None if texts is None else [texts.growing(p, stops) for p in prompts]
        self._grown: list[list[str]] = [[] for _ in prompts]
        self._ended = [False] * len(prompts)
        self._quiet = quiet
        self._current, self._printed = -1, 0  # nothing is printed before there is an answer

    def receive(self, row: int, token: int | None) -> bool:
        """A row's next token, or nothing once it has ended. Returns: whether a stop text has ended
        the row."""
        if self._current < 0:
            self._next()
        growing = None if self._growing is None else self._growing[row]
        if token is None:
            self._add(row, "" if growing is None else growing.end())
            self._ended[row] = True
            if row == self._current:
                self._next()
            return False
        if growing is None:
            self._add(row, f" {token}" if self._grown[row] else str(token))
            return False
        self._add(row, growing.push(token))
        return growing.stopped

    def text(self, row: int) -> str | None:
        """The text of an answer so far; none where there are only tokens."""
        return None if self._growing is None else "".join(self._grown[row])

    def _next(self) -> None:
        """Go on to the first answer that has not ended, and print those before it."""
        while True:
            if self._current >= 0:
                self._write("\n")
            self._current, self._printed = self._current + 1, 0
            if self._current == len(self._grown):
                return
            if len(self._grown) > 1:
                self._write(f"[{self._current + 1}]\n")
            self._print_rest()
            if not self._ended[self._current]:
                return

    def _add(self, row: int, piece: str) -> None:
        self._grown[row].append(piece)
        if row == self._current:
            self._print_rest()

    def _print_rest(self) -> None:
        """Print what the current answer has grown by."""
        pieces = self._grown[self._current][self._printed :]
        self._printed += len(pieces)
        self._write("".join(pieces))

    def _write(self, text: str) -> None:
        if text and not self._quiet and sys.stdout is not None:
            sys.stdout.write(text)
            sys.stdout.flush()

"""The calls that a subject is judged on: corners of batch, sequence, past, position and padding."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

import numpy as np

from rope_export.errors import InputError

Padding = Literal["left", "right", "holes", "unequal"]

FAR = 2**20
"""One more than the last position that is tried; the first is as far below 0."""

SPARE = 3
"""Slots beyond those a call fills, in a fixed cache."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One call.

    start: position of the first cached or new token; None draws every position anew, from -FAR up
        to FAR.
    padding: where the mask has zeros.
    lengths: valid slots of each row of a fixed cache, the longest being past; all past without.
    spare: slots of a fixed cache that are still free after the call.
    scale: size of the main input.
    drawn: the past is drawn, at the size of what the subject makes of the new tokens, and not
        computed, so that a long one costs memory alone.
    loud: slots of a drawn past whose values are so large that one of them, seen or not, changes the
        output.
    """

    batch: int
    sequence: int
    past: int = 0
    start: int | None = 0
    padding: Padding | None = None
    lengths: tuple[int, ...] | None = None
    spare: int = SPARE
    scale: float = 1.0
    drawn: bool = False
    loud: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        words = [f"{self.batch}x{self.sequence}", f"past {self.past}"]
        if self.lengths:
            words[1] = f"past {', '.join(map(str, self.lengths))}"
        if self.spare == 0:
            words.append("cache full")
        if self.start is None:
            words.append("positions drawn")
        elif self.start:
            words.append(f"positions from {self.start}")
        if self.padding:
            words.append(f"{self.padding} padding")
        if self.scale != 1:
            words.append(f"inputs x {self.scale:g}")
        if self.drawn:
            words.append("past drawn")
        if self.loud:
            words.append(f"loud slots {', '.join(map(str, self.loud))}")
        return ", ".join(words)

    @property
    def total(self) -> int:
        return self.past + self.sequence

    @property
    def starts(self) -> np.ndarray:
        """Slot of each row's first new token."""
        return np.array(self.lengths or (self.past,) * self.batch, np.int64)


def regular_cases(cache: str, *, padding: bool, first_position: int | None) -> Iterator[Case]:
    """Every case that fits a cache; at least 24 for any.

    padding: whether a mask is taken. first_position: the lowest that the subject is defined at, if
    there is one.
    """
    prefill = [(1, 1), (1, 2), (1, 7), (2, 1), (1, 33), (2, 64), (4, 17), (1, 128), (1, 512)]
    prefill += [(3, 1), (3, 7), (3, 512)]
    for batch, sequence in prefill:
        yield Case(batch=batch, sequence=sequence)
    for batch, sequence, start in (
        (1, 1, FAR - 1),
        (1, 7, FAR - 7),
        (2, 3, 2_047),
        (1, 16, 4_095),
        (3, 1, 8_192),
        (2, 2, 32_768),
        (1, 64, 65_504),
        (2, 9, 100_000),
        (1, 7, 131_069),
        *(((1, 7, -1_000), (2, 9, -3), (1, 3, -FAR)) if first_position is None else ()),
    ):
        yield Case(batch=batch, sequence=sequence, start=start)
    for batch, sequence in ((1, 4), (2, 2), (3, 13), (2, 31), (5, 1), (1, 100)):
        yield Case(batch=batch, sequence=sequence, start=None)
    if cache != "none":
        yield from _cached()
    if cache == "fixed":
        yield from _fixed()
    if padding:
        yield from _padded(cache)


def _cached() -> Iterator[Case]:
    decode = [(1, 1), (3, 1), (1, 7), (2, 31), (4, 128), (1, 511), (1, 2_000), (3, 2_000)]
    for batch, past in decode:
        yield Case(batch=batch, sequence=1, past=past)
    chunks = [(1, 2, 1), (1, 7, 1), (3, 5, 8), (2, 33, 100), (1, 128, 384), (1, 3, 2_000)]
    for batch, sequence, past in chunks:
        yield Case(batch=batch, sequence=sequence, past=past)
    yield Case(batch=1, sequence=1, past=31, start=FAR - 32)
    yield Case(batch=2, sequence=4, past=60, start=65_500)
    yield Case(batch=3, sequence=2, past=9, start=None)
    yield Case(batch=1, sequence=1, past=64, start=None)


def _fixed() -> Iterator[Case]:
    """Rows of different length, some empty, and caches filled to the last slot."""
    for sequence, lengths in (
        (1, (3, 8)),
        (1, (0, 200, 57)),
        (5, (0, 0, 9)),
        (3, (63, 2)),
        (1, (2_000, 1, 700, 0)),
        (64, (5, 130)),
    ):
        past = max(lengths)
        yield Case(batch=len(lengths), sequence=sequence, past=past, lengths=lengths)
    yield Case(batch=2, sequence=4, past=60, lengths=(60, 7), start=65_500)
    yield Case(batch=3, sequence=2, past=9, lengths=(9, 0, 4), start=None)
    for batch, sequence, past in ((1, 1, 63), (2, 5, 11), (1, 16, 0), (3, 1, 2_000)):
        yield Case(batch=batch, sequence=sequence, past=past, spare=0)
    yield Case(batch=3, sequence=2, past=30, lengths=(30, 0, 17), spare=0)
    yield Case(batch=1, sequence=1, past=9, spare=4_000)
    yield Case(batch=2, sequence=7, spare=500)


def _padded(cache: str) -> Iterator[Case]:
    past = 9 if cache != "none" else 0
    for padding in ("left", "right", "holes", "unequal"):
        yield Case(batch=3, sequence=7, padding=padding)
        yield Case(batch=2, sequence=4, past=past, start=1_000, padding=padding)
    yield Case(batch=4, sequence=1, past=4 * past, padding="left")
    yield Case(batch=2, sequence=64, past=past, start=None, padding="holes")
    if cache == "fixed":
        yield Case(batch=3, sequence=4, past=20, lengths=(20, 3, 11), padding="holes")
        yield Case(batch=3, sequence=1, past=20, lengths=(5, 20, 11), padding="left")


def chosen(case: str, cases: Collection[str]) -> bool:
    """Whether a case is one of those that were asked for by name, or one of a text's calls; every
    case is where none was."""
    return not cases or case in cases or any(case.startswith(f"{name}, call ") for name in cases)


def check_chosen(cases: Collection[str], names: Collection[str]) -> None:
    """Raises: InputError for a case that was asked for and is none of `names`."""
    for case in cases:
        if case not in names:
            like = "; ".join(get_close_matches(case, names, n=3, cutoff=0.0))
            raise InputError(f"`case`={case!r}: there is no such case. Like it are: {like}.")

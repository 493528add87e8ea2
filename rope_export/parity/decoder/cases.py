"""The texts that a decoder is judged on: each is a few calls, one upon the cache of the other."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from zlib import crc32

import numpy as np

from rope_export.arrays import numpy_dtype
from rope_export.artifacts.decoder import DecoderManifest
from rope_export.interface import Interface
from rope_export.parity.cases import SPARE, check_chosen
from rope_export.parity.comparison import Arrays
from rope_export.spec import AttentionSpec

GREEDY = "greedy"
"""How the name of the case begins that is generated text."""

LONGEST_WINDOW = 600
"""Tokens of the longest text that is read to look beyond a window; its bounds take a square."""


@dataclass(frozen=True, kw_only=True)
class Text:
    """Several rows of tokens, read in several calls.

    counts (calls, rows): new tokens of each row in each call. left (rows): padding before a row's
    first token, a part of its first call. past (rows): slots that are filled before the first call,
    with drawn numbers. spare: slots of a fixed cache that are free after the last. first: position
    of the first token. massive: whether the first token of each row is far larger than the others
    when it enters a layer. alone: whether each layer is judged and not the whole model, since what
    enters is no text's, and roundoff may grow in it as in no text.
    """

    name: str
    counts: tuple[tuple[int, ...], ...]
    left: tuple[int, ...] = ()
    past: tuple[int, ...] = ()
    spare: int = SPARE
    first: int = 0
    massive: bool = False
    alone: bool = False

    @property
    def rows(self) -> int:
        return len(self.counts[0])

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row before each call, and after the last, (calls + 1, rows)."""
        past = np.array([self.past or (0,) * self.rows], int)
        return np.concatenate([past, past + np.cumsum(self.counts, axis=0)])

    @property
    def total(self) -> int:
        """Slots of the longest row in the end."""
        return int(self.lengths[-1].max())

    @property
    def capacity(self) -> int:
        """Slots of a fixed cache."""
        return self.total + self.spare

    @property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """Rows that are of one length in every call: they are one batch for transformers."""
        by_counts: dict[tuple[int, ...], list[int]] = {}
        for row in range(self.rows):
            by_counts.setdefault(tuple(self.lengths[:, row].tolist()), []).append(row)
        return tuple(map(tuple, by_counts.values()))

    def mask(self) -> np.ndarray:
        """1 for tokens, 0 for the padding before them, (rows, total)."""
        slots = np.arange(self.total)
        left = np.array(self.left or (0,) * self.rows)[:, None]
        return ((slots >= left) & (slots < self.lengths[-1][:, None])).astype(np.int64)

    def positions(self) -> np.ndarray:
        """The ones of the mask are counted, (rows, total)."""
        return self.first + np.maximum(np.cumsum(self.mask(), axis=1) - 1, 0)

    def ids(self, vocabulary: int, seed: int) -> np.ndarray:
        """Drawn tokens, (rows, total)."""
        stream = np.random.Generator(np.random.PCG64([seed, crc32(self.name.encode())]))
        return stream.integers(min(3, vocabulary - 1), vocabulary, (self.rows, self.total))

    def cached(self, interface: Interface, seed: int) -> Arrays:
        """Normal numbers for every slot of the past, by the caches; nothing without a past."""
        drawn: Arrays = {}
        for pair in interface.caches if self.past else ():
            tensor, slots = interface.input(pair.input), max(self.past)
            shape = tensor.sized({"batch": self.rows, "past": slots, "capacity": slots})
            stream = np.random.Generator(np.random.PCG64([seed, crc32(pair.input.encode())]))
            values = stream.standard_normal(shape, np.float32)
            drawn[pair.input] = values.astype(numpy_dtype(tensor.dtype))
        return drawn


LARGEST_PAST = 1 << 29
"""Bytes of the largest caches that are drawn for a text at later positions, which lie in memory
several times."""


def regular_texts(specs: list[AttentionSpec], facts: DecoderManifest) -> Iterator[Text]:
    """Every text that a decoder is judged on. specs: of its distinct layers."""
    texts = _padded_texts(specs, facts.cache, facts.positions)
    if facts.padding:
        return texts
    return filter(None, (_unpadded(text, facts.interface) for text in texts))


def _unpadded(text: Text, interface: Interface) -> Text | None:
    """A text as a decoder without padding takes it: positions are slots, and several rows go on by
    one token each."""
    if text.left or len(set(text.lengths[-1])) > 1:
        return None
    if text.first:
        if not _can_be_drawn(text, interface):
            return None
        return replace(text, first=0, past=(text.first,) * text.rows, alone=True)
    if any(max(counts) > 1 for counts in text.counts[1:]):
        return replace(text, counts=tuple(counts[:1] for counts in text.counts))
    return text


def _can_be_drawn(text: Text, interface: Interface) -> bool:
    """Whether caches that reach to the first position of a text are small enough."""
    sizes = {"batch": text.rows, "past": text.first, "capacity": text.first}
    caches = (interface.input(pair.input).sized(sizes) for pair in interface.caches)
    return 4 * sum(map(math.prod, caches)) <= LARGEST_PAST


def _padded_texts(specs: list[AttentionSpec], cache: str, positions: int | None) -> Iterator[Text]:
    """positions: how many the model was made for."""
    yield Text(name="short", counts=((7,),))
    yield Text(name="two rows", counts=((15, 15),))
    yield Text(name="decode", counts=((12,), (1,), (1,), (1,)))
    yield Text(name="chunk", counts=((9, 9), (6, 6)))
    yield Text(name="left padding", counts=((10,) * 3, (1,) * 3), left=(0, 3, 7))
    yield Text(name="large hidden states", counts=((9,),), massive=True, alone=True)
    if cache == "fixed":
        yield Text(name="unequal rows", counts=((8, 3, 5), (1, 1, 1), (2, 2, 2)))
    for window in sorted({x.window for x in specs if x.window is not None}):
        if window <= LONGEST_WINDOW:
            yield Text(name=f"beyond the window of {window}", counts=((window + 5,), (1,)))
    for length in sorted({x for spec in specs if (x := trained_length(spec)) is not None}):
        yield Text(name=f"across position {length}", counts=((6,), (6,), (1,)), first=length - 8)
    if positions is not None:
        yield Text(name="at the last positions", counts=((6,), (1,)), first=positions - 8)


def chosen_texts(texts: Iterable[Text], cases: Sequence[str]) -> tuple[Text, ...]:
    """The texts that were asked for by their names, or by one of their calls; all of them where
    none was, or where generated text was, whose tolerance comes of all others.

    Raises: InputError for a name that none has.
    """
    every = tuple(texts)
    if generates(cases):
        return every
    calls = {
        name: text
        for text in every
        for name in (text.name, *(f"{text.name}, call {x + 1}" for x in range(len(text.counts))))
    }
    check_chosen(cases, calls)
    wanted = {calls[case].name for case in cases}
    return tuple(text for text in every if text.name in wanted)


def generates(cases: Sequence[str]) -> bool:
    """Whether generated text is among the cases that were asked for."""
    return not cases or any(case.startswith(GREEDY) for case in cases)


def trained_length(spec: AttentionSpec) -> int | None:
    """The position from which a scaled rotation differs from what was trained first, if any."""
    rope = spec.rope
    names = ("original_length", "max_position_embeddings") if rope is not None else ()
    return next((int(getattr(rope, x)) for x in names if getattr(rope, x, None)), None)


def not_visible(specs: list[AttentionSpec], facts: DecoderManifest) -> Iterator[dict[str, str]]:
    """What no text is long enough to show."""
    for text in [] if facts.padding else _padded_texts(specs, facts.cache, facts.positions):
        if text.first and not _can_be_drawn(text, facts.interface):
            reason = f"the cache of {text.first} tokens before it is too large; export with padding"
            yield {"feature": text.name, "reason": reason}
    for window in sorted({x.window for x in specs if x.window is not None}):
        if window > LONGEST_WINDOW:
            reason = f"no text is longer than {LONGEST_WINDOW} tokens; verify one of its layers"
            yield {"feature": f"window {window}", "reason": reason}

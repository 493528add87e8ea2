"""How errors lie over positions, and where in a tensor: kept while calls are judged, in parts that
are small whatever the calls are."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from rope_export.parity.metrics import SCALED_MAX
from rope_export.parity.report.words import kind_of
from rope_export.parity.rows import Row

OCTAVE = 3
"""Bins of positions between a power of two and the next."""

LAST = 21
"""The power of two beyond which all positions are in one bin."""

EDGES = np.concatenate([[0.0], 2.0 ** (np.arange(OCTAVE * LAST + 1) / OCTAVE)])
"""Where each bin of positions begins; their sizes count, whatever their sign."""

TOKENS, PARTS = 48, 96
"""Rows and columns of the largest map."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Deviating:
    """An output of one call beside its reference.

    difference, bound (batch, sequence, ...): how far each number is off, and by how much rounding
    may be expected to move eager's, if that is known. scale: the largest number of the reference in
    the part that is judged. judged (batch, sequence): tokens that are. positions (batch, sequence):
    of the tokens.
    """

    difference: np.ndarray
    bound: np.ndarray | None
    scale: float
    judged: np.ndarray
    positions: np.ndarray


def deviating(
    difference: np.ndarray,
    expected: np.ndarray,
    bound: np.ndarray | None,
    judged: np.ndarray,
    positions: np.ndarray,
) -> Deviating:
    """An output by the tokens that are judged: difference, expected, bound (tokens, ...)."""

    def placed(values: np.ndarray) -> np.ndarray:
        whole = np.zeros((*judged.shape, *values.shape[1:]))
        whole[judged] = values
        return whole

    return Deviating(
        difference=placed(difference),
        bound=None if bound is None else placed(bound),
        scale=float(np.max(np.abs(expected), initial=0.0)),
        judged=judged,
        positions=positions,
    )


@dataclass(eq=False)
class OverPositions:
    """The largest error of any token at each position, in bins of the position's size.

    error, bound: share of the reference's largest number; -1 where no token was. lowest: the
    smallest of the bounds.
    """

    error: np.ndarray = field(default_factory=lambda: np.full(len(EDGES), -1.0))
    bound: np.ndarray = field(default_factory=lambda: np.full(len(EDGES), -1.0))
    lowest: np.ndarray = field(default_factory=lambda: np.full(len(EDGES), np.inf))

    def add(self, call: Deviating) -> None:
        places = bins(call.positions[call.judged])
        axes = tuple(range(2, call.difference.ndim))
        error = _finite(np.max(np.abs(call.difference), axis=axes)[call.judged] / call.scale)
        np.maximum.at(self.error, places, error)
        if call.bound is not None:
            bound = np.max(call.bound, axis=axes)[call.judged] / call.scale
            np.maximum.at(self.bound, places, bound)
            np.minimum.at(self.lowest, places, bound)


@dataclass(frozen=True, kw_only=True, eq=False)
class Map:
    """Where the error of an output lies, in the case that used most of its tolerance.

    row: the comparison. values (rows, columns): the largest error of each part as a share of the
    tolerance, infinite for what is no number, -1 where nothing is judged. tokens: batch and
    sequence. heads: how many the columns are parts of, each of as many columns; 1 where there are
    none, or too many to be told apart. channels: of all columns.
    """

    row: Row
    values: np.ndarray
    tokens: tuple[int, int]
    heads: int
    channels: int


class Spread:
    """What was kept: `positions` and `maps` by runtime and output; what every layer of a decoder
    has is one output."""

    def __init__(self) -> None:
        self.positions: dict[tuple[str, str], OverPositions] = {}
        self.maps: dict[tuple[str, str], Map] = {}

    def add(self, rows: list[Row], call: Deviating) -> None:
        """One output on one runtime. rows: its comparisons."""
        row = next((row for row in rows if row.metric == SCALED_MAX), None)
        if row is None or not call.judged.any() or not call.scale:
            return
        key = row.runtime, kind_of(row.output)
        self.positions.setdefault(key, OverPositions()).add(call)
        before = self.maps.get(key)
        if before is None or _rank(row) > _rank(before.row):
            self.maps[key] = _map(row, call)

    def worst(self) -> Iterator[Map]:
        """The maps of what failed, those of runtimes first; where nothing failed those of the
        runtimes, or of eager where nothing else ran."""
        maps = sorted(self.maps.values(), key=lambda x: (x.row.runtime == "eager", -x.row.used))
        failed = [x for x in maps if x.row.status == "failed"]
        others = [x for x in maps if x.row.runtime != "eager"]
        yield from failed or others or maps


def bins(positions: np.ndarray) -> np.ndarray:
    """The bin of each position."""
    places: np.ndarray = np.searchsorted(EDGES, np.abs(positions), side="right") - 1
    return places


def _rank(row: Row) -> tuple[bool, float]:
    return row.status == "failed", row.used


def _finite(error: np.ndarray) -> np.ndarray:
    """Infinity for what is no number."""
    return np.where(np.isnan(error), np.inf, error)


def _map(row: Row, call: Deviating) -> Map:
    batch, sequence, *rest = call.difference.shape
    allowed = max(row.tolerance, np.finfo(float).tiny)
    shares = _finite(np.abs(call.difference) / (call.scale * allowed))
    shares[~call.judged] = -1.0
    heads = rest[0] if len(rest) > 1 else 1
    width = int(np.prod(rest)) // heads
    parts = shares.reshape(batch * sequence, heads, width)
    parts = _pooled(parts, 2, max(1, PARTS // heads))
    values = parts.reshape(batch * sequence, -1)
    values = _pooled(values, 1, PARTS)
    return Map(
        row=row,
        values=_pooled(values, 0, TOKENS),
        tokens=(batch, sequence),
        heads=heads if heads <= PARTS else 1,
        channels=heads * width,
    )


def _pooled(values: np.ndarray, axis: int, most: int) -> np.ndarray:
    """The largest number of each of at most `most` parts of an axis, of nearly one size."""
    length = values.shape[axis]
    if length <= most:
        return values
    starts = np.unique(np.arange(most) * length // most)
    pooled: np.ndarray = np.maximum.reduceat(values, starts, axis=axis)
    return pooled

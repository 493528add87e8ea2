"""One tensor on the way: what it should be, what rounding may do to it, and how far a value is
from it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rope_export.parity.bounds import TIMES, Bounds, floors
from rope_export.parity.metrics import errors
from rope_export.parity.report.located import Tap
from rope_export.parity.rows import Row, counted, judged, within

SHAPE = "shape"
"""The metric of a tensor that has another number of elements."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Stage:
    """A tensor that is compared.

    key: as the layer calls it (`Operators.tap`). name: as it is reported, unless there is another
    label. axes: names of the axes
    of `expected`. squares: (u ||a||)^2 of each element in eager; rough: the same of a runtime's own
    kernels; none where there is no bound. judged: which elements are looked at, broadcast; all
    without. units: what errors are measured in. roundings: one upon the other in the longest chain
    up to here. exact: whether values are right or wrong and never near, as those of a mask.
    """

    key: str
    name: str
    axes: tuple[str, ...]
    expected: np.ndarray
    squares: np.ndarray | None = None
    rough: np.ndarray | None = None
    judged: np.ndarray | None = None
    roundings: int = 1
    exact: bool = False
    units: np.ndarray | None = None
    label: str | None = None

    def part(self, value: np.ndarray) -> np.ndarray:
        """The elements that are looked at, in a row."""
        if self.judged is None:
            return value.ravel()
        part: np.ndarray = value[np.broadcast_to(self.judged, value.shape)]
        return part

    def arranged(self, value: np.ndarray, axes: str) -> np.ndarray | None:
        """A value whose numbers lie in the order of `axes`, in that of the stage; none where there
        are fewer or more of them."""
        if self.exact:
            return self._broadcast(value)
        sizes = dict(zip(self.axes, self.expected.shape, strict=True))
        names = [name for name in axes.split() if name in sizes]
        if value.size != self.expected.size:
            return None
        if set(names) != set(self.axes):
            return value.reshape(self.expected.shape)
        lain = value.reshape([sizes[name] for name in names])
        return lain.transpose([names.index(name) for name in self.axes])

    def _broadcast(self, value: np.ndarray) -> np.ndarray | None:
        """A mask (1 or B, ..., S, T): the same for every head."""
        seen = value if value.dtype == bool else value > -1
        seen = seen.reshape(seen.shape[0], -1, *seen.shape[-2:])[:, :1]
        try:
            return np.broadcast_to(seen, self.expected.shape)
        except ValueError:
            return None

    def errors(self, value: np.ndarray, other: np.ndarray | None = None) -> dict[str, float]:
        """The error of a value, by each metric; from `other` in place of the expected one."""
        if self.exact:
            # What a lowering makes of a token that sees nothing is its own affair: it sees no slot
            # there or every one.
            whole = self.expected if other is None else other
            some = whole.any(axis=-1, keepdims=True)
            alike = value.all(axis=-1, keepdims=True) | ~value.any(axis=-1, keepdims=True)
            differing = np.where(some, value != whole, False if other is None else ~alike)
            return {"differing values": float(np.sum(self.part(differing)))}
        true = self.part(self.expected if other is None else other)
        unit = 1.0 if self.units is None else self.part(self.units)
        difference = self.part(value).astype(np.float64) - true
        return errors(difference / unit, true / unit)

    def bounds(self, dtype: str) -> Bounds:
        """What eager's and a runtime's errors may be."""
        if self.exact:
            return Bounds(ceilings={"differing values": 0.0}, floors={"differing values": 0.0})
        expected = self.part(self.expected)
        unit = 1.0 if self.units is None else self.part(self.units)
        if self.squares is None:
            plain = floors(dtype, self.roundings, dict.fromkeys(errors(expected, expected), 0.0), 1)
            return Bounds(ceilings=dict.fromkeys(plain, np.inf), floors=plain)
        ceilings, rough = (
            errors(TIMES * np.sqrt(self.part(np.broadcast_to(x, self.expected.shape))) / unit,
                   expected / unit)
            for x in (self.squares, self.squares if self.rough is None else self.rough)
        )  # fmt: skip
        return Bounds(ceilings=ceilings, floors=floors(dtype, self.roundings, rough, expected.size))

    def place(self, value: np.ndarray, positions: np.ndarray | None) -> tuple[tuple[str, int], ...]:
        """Where the largest error is: an index for each axis that has several, and the position
        of the token."""
        off = np.abs(value.astype(np.float64) - self.expected)
        off = np.where(np.isfinite(off), off, np.inf)
        if self.judged is not None:
            off = np.where(np.broadcast_to(self.judged, off.shape), off, -1.0)
        at = dict(zip(self.axes, np.unravel_index(int(np.argmax(off)), off.shape), strict=True))
        place = []
        for (axis, index), size in zip(at.items(), self.expected.shape, strict=True):
            if size > 1:
                place.append((axis, int(index)))
            if axis == "sequence" and positions is not None:
                token = positions[..., at.get("batch", 0), index]
                place.append(("position", int(np.ravel(token)[0])))
        return tuple(place)


def explains(off: Mapping[str, float], limits: Mapping[str, float]) -> bool:
    """Whether a value that is off by this is another but for rounding. A tensor that should be 0
    has no size by which rounding could be told: its limit is not finite, and only what is equal
    fits."""
    return all(x == 0 or (math.isfinite(limits[name]) and x <= limits[name])
               for name, x in off.items())  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class Seen:
    """A stage in eager and in a runtime. value, eager: arranged as the stage is. source: name of
    the ONNX value. rows: by metric."""

    stage: Stage
    value: np.ndarray
    source: str | None
    rows: tuple[Row, ...]

    @property
    def tap(self) -> Tap:
        """The metric that used most of its tolerance."""
        worst = max(self.rows, key=lambda row: (row.status == "failed", row.used))
        return Tap(
            tensor=self.stage.label or self.stage.name,
            value=self.source,
            metric=worst.metric,
            error=worst.error,
            tolerance=worst.tolerance,
            status=worst.status,
        )

    @property
    def tolerances(self) -> Mapping[str, float]:
        return {row.metric: row.tolerance for row in self.rows}

    def right(self, dtype: str) -> bool:
        """Whether it failed for what eager makes of it alone, and is within what eager may be."""
        ceilings = self.stage.bounds(dtype).ceilings
        return self.stage.squares is not None and all(
            row.status == "passed"
            or (
                row.metric in ceilings
                and not within(row.eager_error, ceilings[row.metric])
                and within(row.error, ceilings[row.metric])
            )
            for row in self.rows
        )

    @property
    def failed(self) -> bool:
        return any(row.status == "failed" for row in self.rows)


def misshapen(stage: Stage, runtime: str, source: str | None) -> Seen:
    """A stage whose value has another number of elements."""
    row = counted(case="", seed=0, runtime=runtime, output=stage.name, metric=SHAPE, error=1.0)
    value = np.full(stage.expected.shape, np.nan)
    return Seen(stage=stage, value=value, source=source, rows=(row,))


def compared(
    stage: Stage, dtype: str, runtime: str, value: np.ndarray, eager: np.ndarray, source: str | None
) -> Seen:
    """A value of a stage by the rule of every row: within twice the larger of eager's error and
    the floor, and only if eager is within its ceiling."""
    rows = judged(
        case="",
        seed=0,
        runtime=runtime,
        output=stage.name,
        errors=stage.errors(value),
        eager_errors=stage.errors(eager),
        bounds=stage.bounds(dtype),
    )
    return Seen(stage=stage, value=value, source=source, rows=tuple(rows))

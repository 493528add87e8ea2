"""Errors beside those of an earlier run: which of them grew, and what is no longer compared."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from rope_export import paths
from rope_export.errors import InputError
from rope_export.parity.bounds import ACCUMULATOR
from rope_export.parity.cases import chosen
from rope_export.parity.rows import TEXT, Row
from rope_export.typed_json import parse, typed

FACTOR = 2.0
"""How many times as large an error may be as it was, unless another factor is asked for."""

ALWAYS = ("eager", "file")
"""What is compared whichever runtimes are asked for."""

Key = tuple[str, int, str, str, str]


class RecordedRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row as `Row.to_json` has it; `error` is null where it was not finite."""

    case: str
    seed: int
    runtime: str
    output: str
    metric: str
    error: float | None

    @property
    def key(self) -> Key:
        return self.case, self.seed, self.runtime, self.output, self.metric


class RecordedRun(msgspec.Struct, frozen=True, kw_only=True):
    """What is read of the JSON of an earlier run. artifact: what it was about, if that was told."""

    rows: list[RecordedRow]
    artifact: dict[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class Grown:
    """A row whose error is more than the allowed factor times what it was. recorded: its error
    then."""

    row: Row
    recorded: float

    @property
    def factor(self) -> float:
        return times(self.row.error, self.recorded)

    def to_json(self) -> dict[str, Any]:
        factor = self.factor if math.isfinite(self.factor) else None
        return {**self.row.to_json(), "recorded": self.recorded, "factor": factor}


@dataclass(frozen=True, kw_only=True)
class Growth:
    """A run beside an earlier one.

    file: of the earlier run. factor: that is allowed. compared: rows that both have. vanished:
    names of the rows that only the earlier one has. gone: runtimes of which no row is left.
    """

    file: str
    factor: float
    compared: int
    grown: tuple[Grown, ...]
    vanished: tuple[str, ...]
    gone: tuple[str, ...]

    @property
    def failed(self) -> bool:
        return bool(self.grown or self.gone)

    def lines(self) -> Iterator[str]:
        """What came of it, in sentences, the worst row that grew among them."""
        yield (
            f"baseline {self.file}: {self.compared} rows compared, {len(self.grown)} grew beyond "
            f"{self.factor:g} times what they were."
        )
        for one in self.grown[:1]:
            row = one.row
            yield (
                f"grown most: {row.case}, {row.output} on {row.runtime}: {row.metric} "
                f"{row.error:.1e}, was {one.recorded:.1e}."
            )
        if self.gone:
            yield f"no row is left of {', '.join(self.gone)}, which the baseline has."
        if self.vanished:
            first = "; ".join(self.vanished[:3])
            more = f"; and {len(self.vanished) - 3} more" if len(self.vanished) > 3 else ""
            yield f"in the baseline alone: {first}{more}."

    def to_json(self) -> dict[str, Any]:
        return {
            **vars(self),
            "grown": [one.to_json() for one in self.grown],
            "vanished": list(self.vanished),
            "gone": list(self.gone),
        }


class Baseline:
    """The rows of an earlier run. seed: of this one.

    Raises: InputError if the file has none, or none of that seed.
    """

    def __init__(self, path: str | Path, seed: int) -> None:
        self.file = paths.shown(path)
        facts = parse(paths.existing_file(path).read_bytes(), Path(path))
        run = typed(facts, RecordedRun, self.file, InputError)
        self.artifact = run.artifact or {}
        # How many near ties a greedy text has is no error that grows; too many fail by themselves.
        self.rows = {row.key: row for row in run.rows if row.output != TEXT}
        if not self.rows:
            raise InputError(f"{self.file}: has no rows; a baseline is the JSON of a `verify`.")
        seeds = sorted({row.seed for row in run.rows})
        if seed not in seeds:
            raise InputError(
                f"{self.file}: its inputs were drawn with `seed`={', '.join(map(str, seeds))}, not "
                f"{seed}: errors can be compared on the same inputs alone."
            )

    def check(self, artifact: Mapping[str, str] | None) -> None:
        """artifact: what this run is about, as a report has it.

        Raises: InputError if the rows are of another artifact.
        """
        for name, value in (artifact or {}).items():
            recorded = self.artifact.get(name, value)
            if recorded != value:
                raise InputError(
                    f"{self.file}: is of another artifact, with {name} {recorded[:40]}, not "
                    f"{value[:40]}; errors of the same artifact alone can be compared."
                )

    def growth(
        self,
        rows: Iterable[Row],
        factor: float = FACTOR,
        *,
        runtimes: Sequence[str] | None = None,
        cases: Sequence[str] = (),
    ) -> Growth:
        """What became of every error. runtimes, cases: those that were asked for, if not all.

        Raises: InputError if the two runs have no row in common.
        """
        now = {(r.case, r.seed, r.runtime, r.output, r.metric): r for r in rows if r.output != TEXT}
        both = [(now[key], row.error) for key, row in self.rows.items() if key in now]
        if not both:
            raise InputError(f"{self.file}: none of its rows is one of this run's.")
        grown = [
            Grown(row=row, recorded=error)
            for row, error in both
            if error is not None and not times(row.error, error) <= factor
        ]
        expected = [
            row
            for row in self.rows.values()
            if chosen(row.case, cases) and (runtimes is None or row.runtime in (*runtimes, *ALWAYS))
        ]
        left = {row.runtime for row in now.values()}
        gone = dict.fromkeys(row.runtime for row in expected if row.runtime not in left)
        vanished = dict.fromkeys(
            f"{row.case}, {row.output} on {row.runtime}"
            for row in expected
            if row.key not in now and row.runtime not in gone
        )
        return Growth(
            file=self.file,
            factor=factor,
            compared=len(both),
            grown=tuple(sorted(grown, key=lambda one: -one.factor)),
            vanished=tuple(vanished),
            gone=tuple(gone),
        )


def times(error: float, recorded: float) -> float:
    """How many times as large an error is as it was; errors below one rounding of float32, in which
    every runtime sums at best, are taken as that."""
    if not math.isfinite(error):
        return math.inf
    return error / max(recorded, ACCUMULATOR)


def check_factor(factor: float | None, baseline: str | Path | None) -> None:
    """Raises: InputError for one below 1, which errors that stayed as they were would break, and
    for one without the baseline that it is about."""
    if factor is None:
        return
    if not 1 <= factor < math.inf:
        raise InputError(f"`factor`={factor:g}: is a number from 1 up.")
    if baseline is None:
        raise InputError(f"`factor`={factor:g}: is how much errors may grow; give a `baseline`.")

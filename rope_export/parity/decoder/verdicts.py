"""The rows of a decoder: of each layer on the reference's input, and of the logits in the end."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from rope_export.parity.bounds import TIMES, Bounds, floors, tolerance
from rope_export.parity.decoder.blocks import Part
from rope_export.parity.metrics import METRICS, RELATIVE, SCALED_MAX, errors
from rope_export.parity.report.located import Located
from rope_export.parity.report.result import Report
from rope_export.parity.report.spread import deviating
from rope_export.parity.rows import Row, counted, judged, within

UNBOUNDED = dict.fromkeys(METRICS, math.inf)


@dataclass(frozen=True, kw_only=True)
class LogitTolerance:
    """What the error of one logit may be, as a share of the norm of its token's logits: at most,
    and in the root mean square."""

    largest: float = 0.0
    mean: float = 0.0

    def or_more(self, other: "LogitTolerance") -> "LogitTolerance":
        """The larger one of each."""
        return LogitTolerance(
            largest=max(self.largest, other.largest), mean=max(self.mean, other.mean)
        )


class Verdicts:
    """Writes rows into a report. first: for each runtime the first layer that is outside of its
    tolerance, with the row that shows it. outer: what is wrong before the first layer or after the
    last. tolerances: of the outputs of whole calls, by the case, the output and the metric."""

    def __init__(self, report: Report, dtype: str, seed: int) -> None:
        self.report, self.dtype, self.seed = report, dtype, seed
        self.first: dict[str, tuple[int, str]] = {}
        self.outer: dict[str, Located] = {}
        self.tolerances: dict[str, dict[str, dict[str, float]]] = {}
        self.eager_errors: dict[tuple[str, str], Mapping[str, float]] = {}

    def layer(
        self,
        *,
        layer: int,
        case: str,
        output: str,
        part: Part,
        judged_tokens: np.ndarray,
        positions: np.ndarray,
        runtimes: Mapping[str, np.ndarray],
    ) -> None:
        """One output of one layer. judged_tokens (rows, sequence): those that are looked at.
        positions (rows, sequence): of the tokens. runtimes: the values of each, of the shape of the
        part."""
        exact, eager = (x[judged_tokens] for x in (part.exact, part.eager))
        if not exact.size:
            return
        squares, rough = (
            None if x is None else x[judged_tokens] for x in (part.squares, part.rough)
        )
        unit = _units(exact, rough)
        ceilings = UNBOUNDED
        floor = floors(self.dtype, exact.shape[-1], dict.fromkeys(METRICS, 0.0), exact.size)
        if squares is not None and rough is not None:
            ceilings, most = (
                errors(TIMES * np.sqrt(x) / unit, exact / unit) for x in (squares, rough)
            )
            floor = floors(self.dtype, 1, most, exact.size)
        eager_errors = errors((eager - exact) / unit, exact / unit)
        for runtime, value in {"eager": None, **runtimes}.items():
            difference = ((eager if value is None else value[judged_tokens]) - exact) / unit
            rows = judged(
                case=case,
                seed=self.seed,
                runtime=runtime,
                output=output,
                errors=errors(difference, exact / unit),
                eager_errors=eager_errors,
                bounds=Bounds(ceilings=ceilings, floors=floor),
            )
            self.report.rows += rows
            if self.report.spread is not None:
                bound = None if squares is None else TIMES * np.sqrt(squares) / unit
                call = deviating(difference, exact / unit, bound, judged_tokens, positions)
                self.report.spread.add(rows, call)
            for row in rows:
                if row.status == "failed":
                    self.outside(runtime, layer, f"{output}, {case}: {row.metric} {row.error:.1e}, "
                                 f"tolerance {row.tolerance:.1e}")  # fmt: skip

    def logits(
        self,
        *,
        case: str,
        exact: np.ndarray,
        eager: np.ndarray,
        floor: Mapping[str, float],
        judged_tokens: np.ndarray,
        positions: np.ndarray,
        runtimes: Mapping[str, np.ndarray],
        against: Sequence[str] = (),
    ) -> LogitTolerance:
        """The logits in the end, (rows, tokens, vocabulary): within twice the larger of eager's
        error and the floor, without a ceiling. judged_tokens, positions: as for `layer`. against:
        which of the runtimes, or "eager", every other one is compared with too.

        Returns: what this allows of one logit.
        """
        exact, eager = exact[judged_tokens], eager[judged_tokens]
        if not exact.size:
            return LogitTolerance()
        unit = np.linalg.norm(exact, axis=-1, keepdims=True)
        eager_errors = errors((eager - exact) / unit, exact / unit)
        bounds = Bounds(ceilings=UNBOUNDED, floors=floor)
        allowed = {name: tolerance(eager_errors[name], floor[name]) for name in METRICS}
        self.tolerances[case] = {"logits": allowed}
        values = {name: value[judged_tokens] for name, value in runtimes.items()}
        self._apart(case, {**values, "eager": eager}, exact, eager_errors, against)
        for runtime, value in values.items():
            difference = (value - exact) / unit
            rows = judged(
                case=case,
                seed=self.seed,
                runtime=runtime,
                output="logits",
                errors=errors(difference, exact / unit),
                eager_errors=eager_errors,
                bounds=bounds,
            )
            self.report.rows += rows
            if self.report.spread is not None:
                call = deviating(difference, exact / unit, None, judged_tokens, positions)
                self.report.spread.add(rows, call)
        share = float(np.max(np.abs(exact / unit)))
        largest, mean = (tolerance(eager_errors[x], floor[x]) for x in (SCALED_MAX, RELATIVE))
        return LogitTolerance(largest=share * largest, mean=mean / math.sqrt(exact.shape[-1]))

    def _apart(
        self,
        case: str,
        values: Mapping[str, np.ndarray],
        exact: np.ndarray,
        eager_errors: Mapping[str, float],
        against: Sequence[str],
    ) -> None:
        """The rows of how far the logits of two runtimes are from each other: each may be off by
        its own tolerance, eager by its error."""
        unit, allowed = np.linalg.norm(exact, axis=-1, keepdims=True), self.tolerances[case]
        others = [name for name in against if name in values]
        for one, other in product([x for x in values if x not in ("eager", *against)], others):
            apart = errors((values[one] - values[other]) / unit, exact / unit)
            for metric, error in apart.items():
                own = allowed["logits"][metric]
                most = own + (eager_errors[metric] if other == "eager" else own)
                self.report.rows.append(
                    Row(
                        case=case,
                        seed=self.seed,
                        runtime=f"{one} against {other}",
                        output="logits",
                        metric=metric,
                        error=error,
                        eager_error=eager_errors[metric],
                        tolerance=most,
                        status="passed" if within(error, most) else "failed",
                    )
                )

    def count(self, *, case: str, runtime: str, output: str, metric: str, error: float) -> bool:
        """A row whose error must be 0. Returns: whether it is."""
        row = counted(
            case=case, seed=self.seed, runtime=runtime, output=output, metric=metric, error=error
        )
        self.report.rows.append(row)
        return error == 0

    def outside(self, runtime: str, layer: int, what: str) -> None:
        """Note that a layer is outside of its tolerance on a runtime."""
        known = self.first.get(runtime)
        if known is None or layer < known[0]:
            self.first[runtime] = layer, what

    def finish(self) -> None:
        """Tell of each runtime the first layer that is outside, in one line, or that none is."""
        for runtime, located in self.outer.items():
            self.report.problems.append(
                f"{located.tensor} is outside of its tolerance on {runtime}, and belongs to no "
                f"layer: {located.case}: {located.metric} {located.error:.1e}, tolerance "
                f"{located.tolerance:.1e}."
            )
        for runtime, (layer, what) in self.first.items():
            self.report.problems.append(
                f"layers.{layer} is the first outside of its tolerance on {runtime}: {what}."
            )
        failed = {row.runtime for row in self.report.rows if row.status == "failed"}
        alone = {name for name in failed if " " not in name}  # not another side, or two
        for runtime in sorted(alone - {"file", *self.first, *self.outer}):
            self.report.problems.append(
                f"no layer alone is outside of its tolerance on {runtime}: look before the first, "
                f"after the last, and at what one layer hands to the next."
            )


def _units(exact: np.ndarray, squares: np.ndarray | None) -> np.ndarray:
    """What the errors of each element are measured in: what rounding may do to it, so that a few
    massive elements do not hide what is wrong with the others; the size of its token where that is
    not known."""
    if squares is None:
        axes = tuple(range(1, exact.ndim))
        return np.sqrt(np.mean(exact**2, axis=axes, keepdims=True)) + np.finfo(float).tiny
    smallest = 1e-3 * np.sqrt(np.mean(squares, axis=-1, keepdims=True))
    return np.maximum(np.sqrt(squares), smallest) + np.finfo(float).tiny


class Floors:
    """What rounding is expected to do to the logits of a call: every layer's share of it, added
    up as independent."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        self._squares: dict[tuple[str, int], float] = defaultdict(float)

    def add(self, case: tuple[str, int], part: Part, judged_tokens: np.ndarray) -> None:
        """One layer's output."""
        exact = part.exact[judged_tokens]
        if part.squares is None or not exact.size:
            return
        sizes = np.sum(exact**2, axis=-1)
        self._squares[case] += float(np.mean(np.sum(part.squares[judged_tokens], axis=-1) / sizes))

    def of(self, case: tuple[str, int], elements: int) -> Mapping[str, float]:
        """By metric."""
        ceiling = TIMES * math.sqrt(self._squares[case])
        return floors(self.dtype, 1, dict.fromkeys(METRICS, ceiling), elements)

"""One case after the other: eager, the reference and every session on the same inputs."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rope_export.arrays import to_numpy, to_torch
from rope_export.attention.layer import RotaryAttention
from rope_export.errors import ProfileError, RopeExportError
from rope_export.interface import cache_names, cached
from rope_export.parity.bounds import floors, tolerance
from rope_export.parity.layer.cases import Case
from rope_export.parity.layer.chain import longest_reduction
from rope_export.parity.layer.deviations import ceiling
from rope_export.parity.layer.properties import Property
from rope_export.parity.layer.reference import ReferenceLayer, Trace
from rope_export.parity.metrics import errors
from rope_export.parity.overflow import Overflows
from rope_export.parity.problems import Problems
from rope_export.parity.report.result import Report
from rope_export.parity.rows import CALLS_FAILED, counted, judged
from rope_export.sessions import Session

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """One call before a runtime has seen it. eager_errors, ceilings and floors: of each output, by
    the metrics' names."""

    case: Case
    inputs: Arrays
    trace: Trace
    eager: Arrays
    eager_errors: dict[str, dict[str, float]]
    ceilings: dict[str, dict[str, float]]
    floors: dict[str, dict[str, float]]

    def tolerance(self, output: str, metric: str) -> float:
        """What a runtime's error may be."""
        return tolerance(self.eager_errors[output][metric], self.floors[output][metric])


class Judge:
    """Runs eager, the reference and every session on the same inputs, and writes the rows."""

    def __init__(
        self,
        *,
        eager: RotaryAttention,
        layer: ReferenceLayer,
        sessions: Mapping[str, Session],
        outputs: Sequence[str],
        report: Report,
        seed: int,
        int8_blocks: Mapping[str, int] | None = None,
    ) -> None:
        self.eager, self.layer, self.sessions = eager, layer, sessions
        self.rough = layer.rounding(int8_blocks or {})
        self.outside: Counter[str] = Counter()
        self.overflows, self.problems = Overflows(layer.spec), Problems()
        self.outputs, self.report, self.seed = outputs, report, seed
        pairs = [cache_names(x, kind) for x in cached(layer.spec) for kind in ("growing", "fixed")]
        self.before = {after: before for before, after in pairs}

    def run_eager(self, inputs: Arrays) -> Arrays:
        values = self.eager(**{name: to_torch(value) for name, value in inputs.items()})
        return {n: to_numpy(v) for n, v in zip(self.outputs, values, strict=False)}

    def prepared(self, case: Case, inputs: Arrays) -> Prepared:
        """What the reference and eager make of one call, and what a runtime may be off by."""
        trace = self.layer(inputs)
        bound = ceiling(self.layer, trace)
        eager = self.run_eager(inputs)
        differences = {name: apart(trace, name, eager[name]) for name in self.outputs}
        ceilings = self._ceilings(trace, bound, differences)
        rough = ceilings
        if self.rough is not self.layer:
            rough = self._ceilings(trace, ceiling(self.rough, trace), differences)
        return Prepared(
            case=case,
            inputs=inputs,
            trace=trace,
            eager=eager,
            eager_errors={name: errors(*pair) for name, pair in differences.items()},
            ceilings=ceilings,
            floors={
                name: floors(
                    self.layer.spec.dtype,
                    longest_reduction(self.layer.spec, case.total),
                    rough[name],
                    pair[1].size,
                )
                for name, pair in differences.items()
            },
        )

    def case(self, case: Case, inputs: Arrays) -> None:
        """Judge the attention output where a token attends to something, the new part of the cache
        by error, and bit for bit what was there before; what lies beyond is nobody's."""
        self.judge(self.prepared(case, inputs))

    def judge(self, ready: Prepared) -> None:
        """A case, once it is prepared: the rows of eager and of every session."""
        case, inputs, trace = ready.case.name, ready.inputs, ready.trace
        overflows = self.overflows.seen(trace, ready.eager["attention_output"])
        for name, session in {"eager": None, **self.sessions}.items():
            given = ready.eager if session is None else self._run(session, case, name, inputs)
            if overflows and session is not None and given is not None:
                answer = given["attention_output"]
                self.overflows.add(name, errors(*apart(trace, "attention_output", answer)))
            for output in self.outputs if given is not None else ():
                assert given is not None
                if not self._same_form(case, name, output, given[output], ready.eager[output]):
                    continue
                self.report.rows += judged(
                    case=case,
                    seed=self.seed,
                    runtime=name,
                    output=output,
                    errors=errors(*apart(trace, output, given[output])),
                    eager_errors=ready.eager_errors[output],
                    ceilings=ready.ceilings[output],
                    floors=ready.floors[output],
                )
                if output in self.before and np.any(trace.starts):
                    changed = _changed(given[output], inputs[self.before[output]], trace.starts)
                    self._count(case, name, output, "past values changed", changed)

    def _ceilings(
        self,
        trace: Trace,
        bound: Arrays,
        differences: Mapping[str, tuple[np.ndarray, np.ndarray]],
    ) -> dict[str, dict[str, float]]:
        """The bounds on each output's elements, as errors by each metric."""
        return {
            name: errors(
                apart(trace, name, trace.outputs[name] + bound[name])[0],
                differences[name][1],
            )
            for name in self.outputs
        }

    def property(self, known: Property) -> None:
        """Judge how far the two sides are apart, in eager and on every runtime."""
        here, there = known.sides(self.run_eager)
        eager_errors = errors(here - there, there)
        ceilings = errors(known.bound(self.layer), there)
        rough = ceilings
        if self.rough is not self.layer:
            rough = errors(known.bound(self.rough), there)
        for name, session in {"eager": None, **self.sessions}.items():
            try:
                sides = (here, there) if session is None else known.sides(_runner(session))
            except ProfileError:
                self.outside[name] += 1
                continue
            except RopeExportError as error:
                self._failed(known.name, name, error)
                continue
            self.report.rows += judged(
                case=known.name,
                seed=self.seed,
                runtime=name,
                output=known.output,
                errors=errors(sides[0] - sides[1], sides[1]),
                eager_errors=eager_errors,
                ceilings=ceilings,
                floors=floors(
                    self.layer.spec.dtype,
                    longest_reduction(self.layer.spec, known.total),
                    rough,
                    there.size,
                ),
            )

    def finish(self) -> None:
        """Write what went wrong beyond figures, each thing in one line."""
        self.report.problems += self.problems.lines()
        overflow = self.overflows.problem()
        if overflow is not None:
            self.report.problems.append(overflow)
            self.report.overflow = True

    def _run(self, session: Session, case: str, name: str, inputs: Arrays) -> Arrays | None:
        try:
            return _runner(session)(inputs)
        except ProfileError:
            self.outside[name] += 1
            return None
        except RopeExportError as error:
            self._failed(case, name, error)
            return None

    def _same_form(
        self, case: str, name: str, output: str, value: np.ndarray, eager: np.ndarray
    ) -> bool:
        if (value.shape, value.dtype) == (eager.shape, eager.dtype):
            return True
        self._count(case, name, output, "shape or dtype", 1.0)
        wrong = f"{output} is {value.dtype}{value.shape}, eager has {eager.dtype}{eager.shape}"
        self.problems.add(name, case, f"{output} of another form", wrong)
        return False

    def _failed(self, case: str, name: str, error: RopeExportError) -> None:
        self._count(case, name, "every output", CALLS_FAILED, 1.0)
        self.problems.add(name, case, str(error), str(error))

    def _count(self, case: str, name: str, output: str, metric: str, error: float) -> None:
        row = counted(
            case=case, seed=self.seed, runtime=name, output=output, metric=metric, error=error
        )
        self.report.rows.append(row)


def _runner(session: Session) -> Callable[[Arrays], Arrays]:
    return lambda inputs: {name: to_numpy(x) for name, x in session.run(inputs).items()}


def apart(trace: Trace, output: str, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Difference from the reference, and the reference, in the part that is judged by error."""
    expected = trace.outputs[output]
    if output == "attention_output":
        return value[trace.attended] - expected[trace.attended], expected[trace.attended]
    new = trace.new(expected)
    return trace.new(value) - new, new


def _changed(after: np.ndarray, before: np.ndarray, starts: np.ndarray) -> float:
    """How many numbers of the entries that were in use have other bits; of as many rows."""
    bits = np.dtype(f"u{before.dtype.itemsize}")
    changed = 0
    for now, then, at in zip(after, before, starts, strict=True):
        kept = np.ascontiguousarray(now[..., :at, :]).view(bits)
        changed += int(np.sum(kept != np.ascontiguousarray(then[..., :at, :]).view(bits)))
    return float(changed)

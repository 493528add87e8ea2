"""One call after the other: eager, the reference and every session on the same inputs."""

from collections import Counter
from collections.abc import Mapping

import numpy as np

from rope_export.arrays import to_numpy
from rope_export.errors import ProfileError, RopeExportError
from rope_export.parity.cases import Case
from rope_export.parity.comparison import Arrays
from rope_export.parity.metrics import errors
from rope_export.parity.overflow import Overflows
from rope_export.parity.problems import Problems
from rope_export.parity.report.result import Report
from rope_export.parity.rows import CALLS_FAILED, counted, judged
from rope_export.parity.subject import Call, Property, Run, Subject
from rope_export.sessions import Session


class Judge:
    """Runs eager, the reference and every session on the same inputs, and writes the rows.

    outside: how many calls each runtime does not take, by its name. failed: see `Failures`.
    """

    def __init__(
        self, *, subject: Subject, sessions: Mapping[str, Session], report: Report, seed: int
    ) -> None:
        self.subject, self.sessions, self.report, self.seed = subject, sessions, report, seed
        self.outputs = [tensor.name for tensor in subject.interface.outputs]
        self.outside: Counter[str] = Counter()
        self.overflows = Overflows(subject.interface.main_output, subject.dtype)
        self.problems = Problems()
        self.failed: dict[str, dict[Case, float]] = {}

    def prepared(self, case: Case) -> Call:
        """What the reference and eager make of one call, and what a runtime may be off by."""
        inputs = self.subject.inputs(case, self.seed)
        expected, eager = self.subject.expected(case, inputs), self.subject.eager(inputs)
        return Call(
            case=case,
            inputs=inputs,
            expected=expected,
            eager=eager,
            eager_errors={x: errors(*expected.difference(x, eager[x])) for x in self.outputs},
            bounds=expected.bounds(),
        )

    def judge(self, call: Call) -> None:
        """The rows of eager and of every session: what the call wrote by its error, and bit for bit
        the cache that was there before."""
        case, main = call.case.name, self.subject.interface.main_output
        overflows, first = self.overflows.seen(call.expected, call.eager), len(self.report.rows)
        for runtime, session in {"eager": None, **self.sessions}.items():
            answer = call.eager if session is None else self._run(session, call, runtime)
            if answer is None:
                continue
            if overflows and session is not None:
                error = errors(*call.expected.difference(main, answer[main]))
                self.overflows.add(runtime, error)
            for output in self.outputs:
                if self._same_form(case, runtime, output, answer[output], call.eager[output]):
                    self._compare(call, runtime, output, answer[output])
        for row in self.report.rows[first:]:
            if row.status == "failed" and row.metric != CALLS_FAILED:
                cases = self.failed.setdefault(row.runtime, {})
                cases[call.case] = max(row.used, cases.get(call.case, 0.0))

    def _compare(self, call: Call, runtime: str, output: str, value: np.ndarray) -> None:
        self.report.rows += judged(
            case=call.case.name,
            seed=self.seed,
            runtime=runtime,
            output=output,
            errors=errors(*call.expected.difference(output, value)),
            eager_errors=call.eager_errors[output],
            bounds=call.bounds[output],
        )
        changed = call.expected.changed(output, value, call.inputs)
        if changed is not None:
            self._count(call.case.name, runtime, output, "past values changed", changed)

    def property(self, equality: Property) -> None:
        """Judge how far the two sides are apart, in eager and on every runtime."""
        left, right = equality.sides(self.subject.eager)
        eager_errors, bounds = errors(left - right, right), equality.bounds(right)
        for runtime, session in {"eager": None, **self.sessions}.items():
            try:
                sides = (left, right) if session is None else equality.sides(_run_of(session))
            except ProfileError:
                self.outside[runtime] += 1
                continue
            except RopeExportError as error:
                self._failed(equality.name, runtime, error)
                continue
            self.report.rows += judged(
                case=equality.name,
                seed=self.seed,
                runtime=runtime,
                output=equality.output,
                errors=errors(sides[0] - sides[1], sides[1]),
                eager_errors=eager_errors,
                bounds=bounds,
            )

    def finish(self) -> None:
        """Write what went wrong beyond figures and what was left out, each thing in one line."""
        self.report.problems += self.problems.lines()
        overflow = self.overflows.problem()
        if overflow is not None:
            self.report.problems.append(overflow)
            self.report.overflow = True
        for runtime, count in self.outside.items():
            self.report.left_out.append(f"{count} cases lie outside of the profiles of {runtime}.")

    def _run(self, session: Session, call: Call, runtime: str) -> Arrays | None:
        try:
            return _run_of(session)(call.inputs)
        except ProfileError:
            self.outside[runtime] += 1
            return None
        except RopeExportError as error:
            self._failed(call.case.name, runtime, error)
            return None

    def _same_form(
        self, case: str, runtime: str, output: str, value: np.ndarray, eager: np.ndarray
    ) -> bool:
        if (value.shape, value.dtype) == (eager.shape, eager.dtype):
            return True
        self._count(case, runtime, output, "shape or dtype", 1.0)
        wrong = f"{output} is {value.dtype}{value.shape}, eager has {eager.dtype}{eager.shape}"
        self.problems.add(runtime, case, f"{output} of another form", wrong)
        return False

    def _failed(self, case: str, runtime: str, error: RopeExportError) -> None:
        self._count(case, runtime, "every output", CALLS_FAILED, 1.0)
        self.problems.add(runtime, case, str(error), str(error))

    def _count(self, case: str, runtime: str, output: str, metric: str, error: float) -> None:
        row = counted(
            case=case, seed=self.seed, runtime=runtime, output=output, metric=metric, error=error
        )
        self.report.rows.append(row)


def _run_of(session: Session) -> Run:
    return lambda inputs: {name: to_numpy(x) for name, x in session.run(inputs).items()}

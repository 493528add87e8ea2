"""One call after the other: eager, the reference and every session on the same inputs."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np

from rope_export.arrays import dtype_name, to_numpy
from rope_export.errors import ProfileError, RopeExportError
from rope_export.parity.cases import Case
from rope_export.parity.comparison import Arrays
from rope_export.parity.metrics import METRICS, errors
from rope_export.parity.overflow import Overflows
from rope_export.parity.problems import Problems
from rope_export.parity.recording.recorder import Recorder
from rope_export.parity.report.result import Report
from rope_export.parity.report.spread import Deviating
from rope_export.parity.rows import CALLS_FAILED, Row, counted, judged, within
from rope_export.parity.subject import Call, Property, Run, Side, Subject
from rope_export.runtimes import all_runtimes
from rope_export.sessions import Session


class Judge:
    """Runs eager, the reference and every session on the same inputs, and writes the rows.

    against: names among these, with which every other one is compared too. recorder: is given
    every call. outside: how many calls each runtime does not take, by its name. failed: see
    `Failures`.
    """

    def __init__(
        self,
        *,
        subject: Subject,
        sessions: Mapping[str, Side],
        report: Report,
        seed: int,
        against: Sequence[str] = (),
        recorder: Recorder | None = None,
    ) -> None:
        self.subject, self.sessions, self.report, self.seed = subject, sessions, report, seed
        self.against, self.recorder = against, recorder
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
        answers: dict[str, Arrays] = {}
        for runtime, session in {"eager": None, **self.sessions}.items():
            answer = call.eager if session is None else self._run(session, call, runtime)
            if answer is None:
                continue
            answers[runtime] = answer
            for output in self.outputs:
                if self._same_form(case, runtime, output, answer[output], call.eager[output]):
                    self._compare(call, runtime, output, answer[output])
                    if overflows and session is not None and output == main:
                        error = errors(*call.expected.difference(main, answer[main]))
                        self.overflows.add(runtime, error)
        for row in self.report.rows[first:]:
            if row.status == "failed" and row.metric != CALLS_FAILED and _own(row.runtime):
                cases = self.failed.setdefault(row.runtime, {})
                cases[call.case] = max(row.used, cases.get(call.case, 0.0))
        others = [x for x in answers if x not in ("eager", *self.against)]
        for runtime, other in product(others, [x for x in self.against if x in answers]):
            self._apart(call, answers, runtime, other)
        if self.recorder is not None:
            self.recorder.add(
                case,
                call.inputs,
                {x: answers[x] for x in answers if _own(x)},
                {x: {m: call.tolerance(x, m) for m in METRICS} for x in call.bounds},
            )

    def _apart(self, call: Call, answers: Mapping[str, Arrays], runtime: str, other: str) -> None:
        """The rows of how far two runtimes are from each other: by what each may be from the
        reference, of which eager's part is known."""
        for output in self.outputs:
            sides = answers[runtime][output], answers[other][output]
            if any(side.shape != call.eager[output].shape for side in sides):
                continue  # which has a row of its own
            left, expected = call.expected.difference(output, sides[0])
            right, _ = call.expected.difference(output, sides[1])
            for metric, error in errors(left - right, expected).items():
                own, eager_error = call.tolerance(output, metric), call.eager_errors[output][metric]
                allowed = own + (eager_error if other == "eager" else own)
                self.report.rows.append(
                    Row(
                        case=call.case.name,
                        seed=self.seed,
                        runtime=f"{runtime} against {other}",
                        output=output,
                        metric=metric,
                        error=error,
                        eager_error=eager_error,
                        tolerance=allowed,
                        status="passed" if within(error, allowed) else "failed",
                    )
                )

    def _compare(self, call: Call, runtime: str, output: str, value: np.ndarray) -> None:
        rows = judged(
            case=call.case.name,
            seed=self.seed,
            runtime=runtime,
            output=output,
            errors=errors(*call.expected.difference(output, value)),
            eager_errors=call.eager_errors[output],
            bounds=call.bounds[output],
        )
        self.report.rows += rows
        self._keep(rows, call, output, value)
        changed = call.expected.changed(output, value, call.inputs)
        if changed is not None:
            self._count(call.case.name, runtime, output, "past values changed", changed)

    def _keep(self, rows: list[Row], call: Call, output: str, value: np.ndarray) -> None:
        """Note where in an output its errors lie, if that was asked for."""
        spread, expected = self.report.spread, call.expected
        right = expected.by_token(output, expected.outputs[output])
        if spread is None or right is None:
            return
        name = self.subject.interface.positions
        if name is None:
            positions = expected.starts[:, None] + np.arange(expected.sequence)
        else:  # of several axes the first
            positions = call.inputs[name].reshape(-1, *right.shape[:2])[0]
        left = expected.by_token(output, value)
        ceiling = call.ceilings.get(output)
        deviating = Deviating(
            difference=left - right,
            bound=None if ceiling is None else expected.by_token(output, ceiling),
            scale=float(np.max(np.abs(expected.difference(output, value)[1]), initial=0.0)),
            judged=expected.judged_tokens(output),
            positions=positions,
        )
        spread.add(rows, deviating)

    def property(self, equality: Property) -> None:
        """Judge how far the two sides are apart, in eager and on every runtime."""
        left, right = equality.sides(self.subject.eager)
        eager_errors, bounds = errors(left - right, right), equality.bounds(right)
        for runtime, session in {"eager": None, **self.sessions}.items():
            if session is not None and not isinstance(session, Session):
                continue
            try:
                sides = (left, right) if session is None else equality.sides(self._formed(session))
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

    def _formed(self, session: Session) -> Run:
        """Runs calls, whose outputs have the form of the interface.

        Raises: RopeExportError for one that has another: nothing can be computed of it.
        """
        interface, run = self.subject.interface, _run_of(session)

        def formed(inputs: Arrays) -> Arrays:
            outputs = run(inputs)
            axes = interface.bind_axes({n: (dtype_name(x), x.shape) for n, x in inputs.items()})
            for tensor in interface.outputs:
                value, shape = outputs[tensor.name], tensor.sized(axes)
                if (value.shape, dtype_name(value)) != (shape, tensor.dtype):
                    raise RopeExportError(
                        f"{tensor.name} is {value.dtype}{value.shape}, not {tensor.dtype}{shape}"
                    )
            return outputs

        return formed

    def finish(self) -> None:
        """Write what went wrong beyond figures and what was left out, each thing in one line."""
        self.report.problems += self.problems.lines()
        overflow = self.overflows.problem()
        if overflow is not None:
            self.report.problems.append(overflow)
            self.report.overflow = True
        for runtime, count in self.outside.items():
            self.report.left_out.append(f"{count} cases lie outside of the profiles of {runtime}.")

    def _run(self, session: Side, call: Call, runtime: str) -> Arrays | None:
        if not isinstance(session, Session):
            return session.of(call.case.name)
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


def _own(runtime: str) -> bool:
    """Whether this is a runtime of the subject itself, and not of what it is compared with."""
    return runtime == "eager" or runtime in all_runtimes()

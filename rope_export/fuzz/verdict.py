"""Whether an example's artifact computes what eager PyTorch computes, by the acceptance rule."""

import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rope_export.arrays import numpy_dtype
from rope_export.artifacts.artifact import Artifact
from rope_export.artifacts.deployed import file_weights
from rope_export.errors import InputError, RopeExportError, UnavailableError
from rope_export.fuzz.artifact import exported
from rope_export.fuzz.example import Example
from rope_export.fuzz.range import beyond_range
from rope_export.parity.cases import Case
from rope_export.parity.comparison import Arrays
from rope_export.parity.harness import compare
from rope_export.parity.layer.weights import Weights
from rope_export.parity.report.result import Report
from rope_export.parity.rows import Row, counted
from rope_export.parity.subject import Call, Failures, Property, Request, Revealing, Whereabouts
from rope_export.parity.subjects.layer import LayerSubject
from rope_export.reading.verdict import Reading
from rope_export.sessions.slots import is_moderate, limit_of

REASON = "the layer was drawn, and is no model's"


class Counterexample(AssertionError):
    """An example that fails. Its text tells the worst row, and the command that compares it again.

    example: with the call that failed alone. what: went wrong, in one line. report: every row; none
    where there is no artifact.
    """

    def __init__(self, example: Example, what: str, report: Report | None = None) -> None:
        super().__init__(f"{what}\nCompare it again with:\n{example.command}")
        self.example, self.what, self.report = example, what, report


class DrawnSubject(LayerSubject):
    """The layer of an example on the calls of the example, whose weights are known.

    outside: by the name of a case, what of it is beyond the range of the dtype.
    """

    def __init__(self, artifact: Artifact, example: Example, *, locating: bool) -> None:
        tensors = example.tensors()
        rows = [
            counted(
                case="weights in the file",
                seed=example.seed,
                runtime="file",
                output=name,
                metric="differing values",
                error=float((value != tensors[name]).sum()),
            )
            for name, value in file_weights(artifact).items()
        ]
        weights = Weights(tensors=tensors, verdict="proven", rows=rows)
        super().__init__(artifact, example.spec, weights, Request(seed=example.seed))
        self.example, self.locating = example, locating
        self.outside: dict[str, str] = {}

    def report(self) -> Report:
        reading = Reading(status="unproven", reason=REASON)
        return Report(weights="proven", rows=self.weights.rows, reading=reading)

    def cases(self) -> Iterable[Case]:
        every = {case.name: case for case in self.example.cases}
        for case in every.values():
            inputs = self.inputs(case, self.example.seed)
            reason = beyond_range(self.layer, self.layer(inputs))
            limit = limit_of(self.dtype)
            if case.padding and not is_moderate(inputs[self.interface.main_input], limit):
                reason = f"of padded tokens a session takes what is beyond {limit:.4g} for zeros"
            if reason is None:
                yield case
            else:
                self.outside[case.name] = reason

    def inputs(self, case: Case, seed: int) -> Arrays:
        inputs = super().inputs(case, seed)
        name = self.interface.main_input
        values = self.example.hidden_states.of(inputs[name])
        with np.errstate(over="ignore"):  # what is not finite is beyond the range
            return {**inputs, name: values.astype(numpy_dtype(self.dtype))}

    def properties(self, seed: int) -> Iterable[Property]:
        return ()

    def revealing(self, prepared: Callable[[Case], Call]) -> Revealing:
        return Revealing()

    def locate(self, failures: Failures, prepared: Callable[[Case], Call]) -> Whereabouts:
        return super().locate(failures, prepared) if self.locating else Whereabouts()

    def conclude(self, report: Report, seed: int) -> None:
        for name, reason in self.outside.items():
            report.left_out.append(f"{name}: not judged, {reason}.")

    def record(self, evidence: Mapping[str, Any]) -> None:
        """The folder is a temporary one."""


def judged(example: Example, *, out: Path | None = None, locating: bool = False) -> Report:
    """Every row of an example.

    out: where its artifact is kept; in a folder for the time being without. locating: whether the
    first wrong tensor of what failed is looked for.
    Raises: InputError for what the lowering cannot express; RopeExportError for a file that is not
        valid, or that the runtime refuses.
    """
    with tempfile.TemporaryDirectory(prefix="rope_export-") as folder:
        artifact = exported(example, out or Path(folder) / "artifact")
        subject = DrawnSubject(artifact, example, locating=locating)
        return compare(subject, runtimes=[example.runtime], seed=example.seed)


def check(example: Example) -> bool:
    """Whether anything was compared: not if every call is beyond the range of its dtype, or the
    layer is not for this lowering, or the artifact not for this runtime.

    Raises: Counterexample if it is wrong.
    """
    try:
        report = judged(example)
    except (UnavailableError, InputError):
        return False
    except Exception as error:  # whatever torch's exporter, onnx or a lowering meet
        what = str(error).strip().splitlines() or [""]
        line = (
            what[0] if isinstance(error, RopeExportError) else f"{type(error).__name__}: {what[0]}"
        )
        raise Counterexample(example, f"{_named(example)}: {line}") from error
    failed = [row for row in report.rows if row.status == "failed"]
    if failed:
        worst = max(failed, key=lambda row: row.used)
        raise Counterexample(example.only(worst.case), _line(example, worst, report), report)
    return report.status == "passed"


def _named(example: Example) -> str:
    return f"lowering {example.lowering!r} on {example.runtime}"


def _line(example: Example, row: Row, report: Report) -> str:
    """What is wrong, in one line."""
    problem = f" {report.problems[0]}" if report.problems else ""
    return (
        f"{_named(example)}: {row.output} of {row.case!r} on {row.runtime}: {row.metric} "
        f"{row.error:.1e}, tolerance {row.tolerance:.1e}.{problem}"
    )

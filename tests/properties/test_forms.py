"""A runtime that gives other outputs than the interface tells, and a file that names no tensors."""

from collections.abc import Callable

import numpy as np
import pytest

from rope_export.parity.cases import Case
from rope_export.parity.harness import compare
from rope_export.parity.locate import layer as locate
from rope_export.parity.report.result import Report
from rope_export.parity.subject import Request, Revealing
from rope_export.parity.subjects.opening import subject_of
from rope_export.runtimes.reference import ReferenceRunner

Judged = Callable[[Callable[[np.ndarray], np.ndarray]], Report]


@pytest.fixture
def judged(tiny, monkeypatch) -> Judged:
    """The report on onnx's evaluator, which gives what a function makes of the main output."""
    run = ReferenceRunner.run

    def of(change: Callable[[np.ndarray], np.ndarray]) -> Report:
        def changed(self, *arguments):
            outputs = run(self, *arguments)
            return outputs | {"attention_output": change(outputs["attention_output"])}

        monkeypatch.setattr(ReferenceRunner, "run", changed)
        subject = subject_of(tiny(), Request())
        subject.cases = lambda: [Case(batch=2, sequence=16)]
        subject.revealing = lambda prepared: Revealing()
        return compare(subject, runtimes=["reference"])

    return of


def test_outputs_of_another_shape_fail_in_properties_too(judged) -> None:
    report = judged(lambda output: output[:, 1:])
    rows = {row.case: row for row in report.rows if row.runtime == "reference"}
    shifts = [row for name, row in rows.items() if name.startswith("shift")]
    assert {row.status for row in (*shifts, rows["causality: later tokens changed"])} == {"failed"}
    (told,) = (x for x in report.problems if x.startswith("causality"))
    assert "attention_output is float32(2, 11, 64), not float32(2, 12, 64)" in told


def test_a_file_without_names_of_tensors_is_not_told_to_be_right(judged, monkeypatch) -> None:
    """As of versions that wrote none: its caches alone are."""
    monkeypatch.setattr(locate, "taps_in", lambda model: {})
    report = judged(lambda output: 2 * output)
    assert report.status == "failed"
    assert report.located == ()
    assert report.left_out == [
        "reference: the first wrong tensor was not looked for: the file names none of its tensors; "
        "export it again."
    ]

"""A layer whose outputs have another form than its interface tells."""

import numpy as np

from rope_export.parity.cases import Case
from rope_export.parity.harness import compare
from rope_export.parity.subject import Request, Revealing
from rope_export.parity.subjects.opening import subject_of
from tests.conformance.faults.layers import layer
from tests.conformance.faults.planting import Fault, artifact, behind

FIRST_CUT_OFF = ("Slice", (np.array([1]), np.array([2**31]), np.array([1])), {})


def test_outputs_of_another_shape_fail_in_properties_too(tmp_path) -> None:
    """onnx's evaluator, unlike onnxruntime, is given no place for outputs to fit in."""
    fault = Fault(name="a token less", edit=behind("o_proj", FIRST_CUT_OFF))
    made = artifact(
        layer("plain", "float32"), tmp_path / "x", lowering="portable", cache="none", fault=fault
    )
    subject = subject_of(made, Request())
    subject.cases = lambda: [Case(batch=2, sequence=16)]
    subject.revealing = lambda prepared: Revealing()
    report = compare(subject, runtimes=["reference"])
    rows = {row.case: row for row in report.rows if row.runtime == "reference"}
    assert {row.status for row in rows.values()} == {"failed"}
    assert rows.keys() > {"2x16, past 0", "causality: later tokens changed"}
    (told,) = (x for x in report.problems if x.startswith("causality"))
    assert "attention_output is float32(2, 11, 64), not float32(2, 12, 64)" in told

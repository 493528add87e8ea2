"""Why a file with one attention layer is wrong: which counterfactual gives what the file gives."""

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

from rope_export.arrays import to_numpy
from rope_export.errors import RopeExportError
from rope_export.parity.cases import Case
from rope_export.parity.layer.counterfactuals import Counterfactual, counterfactuals_of
from rope_export.parity.metrics import METRICS, errors
from rope_export.parity.report.result import Report
from rope_export.parity.rows import Row
from rope_export.sessions import Session

if TYPE_CHECKING:
    from rope_export.parity.subjects.layer import LayerSubject

NAMES = {
    "variant": "rope scaling",
    "attention factor": "rope scaling",
    "length": "rope scaling",
    "theta": "rope base",
    "layout": "pairing",
    "partial": "partial rotation",
    "positions": "positions",
}
"""Causes by the kind of the feature, where the kind is not the cause's name."""

OUTPUT = "attention_output"


def layer_causes(
    subject: "LayerSubject", session: Session, report: Report, runtime: str, seed: int
) -> None:
    """Write what explains every case that failed on a runtime into the report."""
    failed: dict[str, list[Row]] = defaultdict(list)
    for row in report.rows:
        if row.runtime == runtime and row.output == OUTPUT and row.status == "failed":
            failed[row.case].append(row)
    causes: dict[tuple[str, str], list[str]] = defaultdict(list)
    faults = [
        (NAMES.get(feature.kind, feature.name), fault)
        for feature in subject.spec.features()
        for fault in counterfactuals_of(subject.layer, feature)
    ]
    for case in subject.cases():
        rows = failed.get(case.name)
        if rows is None:
            continue
        for cause, fault in faults:
            if _explains(subject, session, case, rows, fault, seed):
                causes[cause, fault.fault].append(case.name)
                break
        else:
            causes["unknown", "no counterfactual explains it"].append(case.name)
    for (cause, words), cases in causes.items():
        texts = "; ".join(cases)
        report.causes.append({"runtime": runtime, "cause": cause, "fault": words, "texts": texts})
        report.problems.append(f"cause on {runtime}: {cause}, {words}: {len(cases)} cases.")


def _explains(
    subject: "LayerSubject",
    session: Session,
    case: Case,
    rows: list[Row],
    fault: Counterfactual,
    seed: int,
) -> bool:
    """Whether a file's output is within the tolerance of the layer with the fault."""
    inputs = subject.inputs(case, seed)
    try:
        value = to_numpy(session.run(inputs)[OUTPUT])
        trace = fault.layer(fault.inputs(inputs))
    except (RopeExportError, ValueError, AssertionError):
        return False
    if value.shape != trace.output.shape or any(row.metric not in METRICS for row in rows):
        return False  # of another form, which no counterfactual has
    exact = trace.output[trace.attended]
    found = errors(value[trace.attended].astype(np.float64) - exact, exact)
    return all(found[row.metric] <= row.tolerance for row in rows)

"""Two recordings beside each other, without anything that knows what is right."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np

from rope_export import paths
from rope_export.arrays import dtype_name
from rope_export.errors import InputError
from rope_export.parity.bounds import UNIT_ROUNDOFF, floors
from rope_export.parity.cases import check_chosen
from rope_export.parity.metrics import METRICS, errors
from rope_export.parity.recording.files import Arrays, Recording, is_recording
from rope_export.parity.report.lines import TWO_RECORDINGS
from rope_export.parity.report.result import Report
from rope_export.parity.rows import Row, within
from rope_export.reading.verdict import Reading

SIDES = 2
"""Each of two sound sides may be off by the tolerance of one runtime."""


UNJUDGED = (
    "outputs without a recorded tolerance, where others of the call have one, were not compared"
)
"""Of a decoder's whole calls only the logits have a tolerance."""


def check_options(one: str | Path, options: Mapping[str, object]) -> None:
    """Raises: InputError for an option of an artifact that was given for a recording."""
    for name, value in options.items():
        if value is not None:
            raise InputError(
                f"`{name}`={value}: {paths.shown(one)} is a recording, which is compared as it is."
            )


def compare_recordings(
    one: str | Path,
    against: str | Path | None,
    *,
    runtimes: Sequence[str] | None = None,
    cases: Sequence[str] = (),
) -> Report:
    """The verdict on two files; see `compare_calls`. runtimes, cases: as for `verify`.

    Raises: InputError where the other one is no recording, or the first has not what was asked for.
    """
    if against is None or not is_recording(against):
        raise InputError(
            f"{paths.shown(one)}: is compared with another recording (`against`); to compare it "
            f"with what an artifact computes, give the artifact first, and the recording as "
            f"`against`."
        )
    left, right = Recording(one), Recording(against)
    for name in runtimes or ():
        if name not in left.runtimes:
            raise InputError(
                f"{left.shown}: has no outputs of {name!r}; of {', '.join(left.runtimes)}."
            )
    check_chosen(cases, left.cases)
    return compare_calls(left, right, runtimes or left.runtimes, cases or left.cases)


def compare_calls(
    left: Recording, right: Recording, runtimes: Sequence[str], cases: Sequence[str]
) -> Report:
    """The verdict on two recordings of the same calls. runtimes, cases: of the left one, compared.

    What is right is not known, so a fault that both have does not show. Each side may be off by
    what the file says a runtime could be; where neither file says, by 2 u sqrt(K), with u the
    dtype's unit roundoff and K the longest axis of any tensor of the call, which stands for the
    longest sum: twice the floor of the acceptance rule, without eager's own error.
    Raises: InputError if the two have no call in common, or other inputs in one.
    """
    report = Report(
        weights="unproven",
        reading=Reading(status="unproven", reason=TWO_RECORDINGS),
    )
    report.left_out.append(
        "no reference: two recordings were compared with each other, so what both get wrong does "
        "not show."
    )
    common = [case for case in cases if case in right.cases]
    if not common:
        raise InputError(
            f"{left.shown}: has no call in common with {right.shown}; its calls are "
            f"{', '.join(left.cases[:3])}."
        )
    others = () if set(cases) < set(left.cases) else right.cases  # some were asked for by name
    for side, count in (
        (right, len(cases) - len(common)),
        (left, sum(case not in left.cases for case in others)),
    ):
        if count:
            report.left_out.append(f"{count} calls are not in {side.shown}.")
    plain = [case for case in common if not _check_inputs(left, right, case)]
    if plain:
        report.left_out.append(
            f"{len(plain)} calls have no recorded tolerance: each side may be off by 2 u √K, K the "
            f"longest axis of its tensors."
        )
    for case in common:
        for one, other in product(runtimes, right.runtimes):
            _judge(report, left, right, case, one, other)
    return report


def _check_inputs(left: Recording, right: Recording, case: str) -> bool:
    """Whether a file has tolerances of the call. Raises: InputError where their inputs differ."""
    ours, theirs = left.inputs(case), right.inputs(case)
    for name in ours.keys() & theirs.keys():
        one, other = ours[name], theirs[name]
        if not np.array_equal(one, other) and not _same_bits(one, other):
            raise InputError(
                f"{left.shown}, {case}: its {name} is not that of {right.shown}; only outputs of "
                f"the same inputs can be compared."
            )
    return bool(left.tolerances(case) or right.tolerances(case))


def _same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two arrays, which may hold NaN, are the same."""
    same_form = (one.shape, one.dtype) == (other.shape, other.dtype)
    return same_form and one.tobytes() == other.tobytes()


def _judge(
    report: Report, left: Recording, right: Recording, case: str, one: str, other: str
) -> None:
    """The rows of one call on one runtime of each file."""
    ours, theirs = left.outputs(case, one), right.outputs(case, other)
    if ours is None or theirs is None:
        side, runtime = (left, one) if ours is None else (right, other)
        what = f"calls without outputs of {runtime} in {side.shown} were not compared"
        _leave_out(report, what, case)
        return
    allowed = left.tolerances(case) or right.tolerances(case)
    longest = _longest([left.inputs(case), right.inputs(case), ours, theirs])
    row = Row(
        case=case,
        seed=0,
        runtime=f"{one} of {left.shown} against {other} of {right.shown}",
        output="",
        metric="",
        error=0.0,
        eager_error=0.0,
        tolerance=0.0,
        status="passed",
    )
    for output in ours | theirs:
        value, other_value = ours.get(output), theirs.get(output)
        if allowed and output not in allowed and value is not None and other_value is not None:
            _leave_out(report, UNJUDGED, f"{output} of {case}")
            continue
        tolerances = {} if value is None else _tolerances(allowed.get(output), value, longest)
        for metric, error in _apart(value, other_value).items():
            most = tolerances.get(metric, 0.0)
            report.rows.append(
                replace(
                    row,
                    output=output,
                    metric=metric,
                    error=error,
                    tolerance=most,
                    status="passed" if within(error, most) else "failed",
                )
            )


def _leave_out(report: Report, what: str, first: str) -> None:
    """Tell once what was not compared."""
    if not any(line.startswith(what) for line in report.left_out):
        report.left_out.append(f"{what}: the first is {first}.")


def _apart(value: np.ndarray | None, other: np.ndarray | None) -> dict[str, float]:
    """How far two values are apart, by metric; an output that one side lacks is another."""
    if value is None or other is None or (other.shape, other.dtype) != (value.shape, value.dtype):
        return {"shape or dtype": 1.0}
    if value.dtype.kind in "biu":
        return {"differing values": float(np.sum(value != other))}
    wide = other.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        return errors(value.astype(np.float64) - wide, wide)


def _tolerances(recorded: np.ndarray | None, value: np.ndarray, longest: int) -> dict[str, float]:
    """What two sides may be apart, by metric."""
    if recorded is not None:
        return {metric: SIDES * float(x) for metric, x in zip(METRICS, recorded, strict=True)}
    dtype = dtype_name(value)
    dtype = dtype if dtype in UNIT_ROUNDOFF else "float32"
    floor = floors(dtype, longest, dict.fromkeys(METRICS, 0.0), value.size)
    return {metric: SIDES * 2 * x for metric, x in floor.items()}


def _longest(calls: list[Arrays]) -> int:
    return max(
        (size for call in calls for value in call.values() for size in value.shape), default=1
    )

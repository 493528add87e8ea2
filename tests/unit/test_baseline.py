"""Errors beside those of an earlier run: what grew, what vanished, and what is no baseline."""

import dataclasses
import json
import math
from pathlib import Path

import pytest

from rope_export.errors import InputError
from rope_export.parity import Report, Row
from rope_export.parity.report.baseline import Baseline, Growth, check_factor
from rope_export.parity.report.lines import every_line
from tests.unit.test_report import row

CASES = ("1x1, past 0", "2x7, past 3")
RUNTIMES = ("eager", "onnxruntime")


def rows() -> list[Row]:
    return [
        row(case=case, runtime=runtime, metric=metric)
        for case in CASES
        for runtime in RUNTIMES
        for metric in ("relative L2", "scaled max")
    ]


def recorded(folder: Path, *rows: Row, artifact: dict[str, str] | None = None) -> Baseline:
    """The baseline that `verify --json` makes of these rows, read again."""
    file = folder / "baseline.json"
    report = Report(weights="proven", rows=list(rows), artifact=artifact)
    file.write_text(json.dumps(report.to_json()))
    return Baseline(file, 0)


def grown(folder: Path, before: float, now: float, factor: float = 2.0) -> Growth:
    """What becomes of one row with these errors."""
    return recorded(folder, row(error=before)).growth([row(error=now)], factor)


def test_the_same_errors_have_not_grown(tmp_path) -> None:
    growth = recorded(tmp_path, *rows()).growth(rows())
    assert (growth.compared, growth.failed) == (8, False)
    assert (growth.grown, growth.vanished, growth.gone) == ((), (), ())


@pytest.mark.parametrize(
    ("before", "now", "factor", "fails"),
    [
        (1e-6, 1.9e-6, 2.0, False),
        (1e-6, 2.1e-6, 2.0, True),
        (1e-6, 2.1e-6, 3.0, False),
        (1e-6, 0.0, 2.0, False),
        (0.0, 2.0**-23, 2.0, False),  # twice one rounding of float32
        (0.0, 2.0**-22, 2.0, True),
        (1e-6, math.nan, 2.0, True),
        (1e-6, math.inf, 1e9, True),
        (math.inf, math.inf, 2.0, False),
        (math.nan, 1.0, 2.0, False),
    ],
)
def test_an_error_may_grow_by_the_factor(tmp_path, before, now, factor, fails) -> None:
    assert grown(tmp_path, before, now, factor).failed is fails


def test_what_grew_fails_the_report_and_is_named(tmp_path) -> None:
    now = rows()
    now[-1] = dataclasses.replace(now[-1], error=1e-3, status="passed")
    report = Report(weights="proven", rows=now)
    assert report.status == "passed"
    report.growth = recorded(tmp_path, *rows()).growth(now)
    assert report.status == "failed"
    text = " ".join(every_line(report))
    assert "8 rows compared, 1 grew beyond 2 times" in text
    assert "2x7, past 3, attention_output on onnxruntime: scaled max 1.0e-03, was 1.0e-07" in text
    (one,) = report.to_json()["baseline"]["grown"]
    assert one["recorded"] == 1e-7
    assert one["factor"] == pytest.approx(1e4)


def test_a_row_that_vanished_is_named_and_a_runtime_that_did_fails(tmp_path) -> None:
    baseline = recorded(tmp_path, *rows())
    less = [x for x in rows() if (x.case, x.runtime) != (CASES[0], "onnxruntime")]
    growth = baseline.growth(less)
    assert growth.vanished == ("1x1, past 0, attention_output on onnxruntime",)
    assert not growth.failed
    without = baseline.growth([x for x in rows() if x.runtime == "eager"])
    assert (without.gone, without.failed) == (("onnxruntime",), True)
    assert "no row is left of onnxruntime" in " ".join(without.lines())


def test_what_was_not_asked_for_has_not_vanished(tmp_path) -> None:
    baseline = recorded(tmp_path, *rows(), row(runtime="reference"))
    asked = baseline.growth(rows(), runtimes=["onnxruntime"])
    assert (asked.gone, asked.vanished) == ((), ())
    one = [x for x in rows() if x.case == CASES[0]]
    assert not baseline.growth(one, runtimes=["onnxruntime"], cases=[CASES[0]]).vanished


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is not JSON"),
        ("[]", "not an object"),
        ('{"error": "no such file", "status": 2}', "rows"),
        ('{"rows": []}', "has no rows"),
        ('{"rows": [{"case": "x"}]}', "seed"),
    ],
)
def test_what_is_no_baseline_is_refused_in_a_line(tmp_path, text, reason) -> None:
    file = tmp_path / "baseline.json"
    file.write_text(text)
    with pytest.raises(InputError, match=reason):
        Baseline(file, 0)


def test_a_missing_file_other_inputs_and_a_small_factor_are_refused(tmp_path) -> None:
    with pytest.raises(InputError, match="is not there"):
        Baseline(tmp_path / "none.json", 0)
    recorded(tmp_path, *rows())
    with pytest.raises(InputError, match="`seed`=0, not 1"):
        Baseline(tmp_path / "baseline.json", 1)
    with pytest.raises(InputError, match="from 1 up"):
        check_factor(0.5, "baseline.json")
    with pytest.raises(InputError, match=r"`factor`=3: .* give a `baseline`"):
        check_factor(3.0, None)
    with pytest.raises(InputError, match="none of its rows"):
        Baseline(tmp_path / "baseline.json", 0).growth([row(case="another")])


def test_near_ties_of_a_greedy_text_do_not_grow(tmp_path) -> None:
    """Their number is a part of the case's name, and one more is no error."""
    text = {"output": "text", "metric": "tokens of another near logit"}
    baseline = recorded(tmp_path, row(), row(case="greedy, 8 x 64 tokens, 0 near ties", **text))
    growth = baseline.growth([row(), row(case="greedy, 8 x 64 tokens, 1 near ties", **text)])
    assert (growth.failed, growth.vanished) == (False, ())


def test_a_baseline_of_another_artifact_is_refused(tmp_path) -> None:
    artifact = {"dtype": "float16", "lowering": "ort"}
    baseline = recorded(tmp_path, row(), artifact=artifact)
    baseline.check(artifact)
    with pytest.raises(InputError, match="another artifact, with dtype float16, not float32"):
        baseline.check(artifact | {"dtype": "float32"})
    recorded(tmp_path, row()).check(artifact)  # of a version that did not tell

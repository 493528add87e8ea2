"""What `verify` prints: the verdict first, on one screen, and everything that failed."""

import dataclasses
import io

from rich.console import Console

from rope_export.parity import Report, Row
from rope_export.parity.report.tables import MOST, summary

ROW = Row(
    case="2x4, past 9, positions from 1000, unequal padding",
    seed=0,
    runtime="onnxruntime",
    output="attention_output",
    metric="relative L2",
    error=1e-7,
    eager_error=1e-7,
    tolerance=1e-6,
    status="passed",
)


def row(**facts: object) -> Row:
    return dataclasses.replace(ROW, **facts)


def printed(report: Report) -> list[str]:
    console = Console(file=io.StringIO(), width=80)
    console.print(summary(report, "build/layer0 against eager PyTorch"))
    return console.file.getvalue().splitlines()


def test_a_passing_report_fits_a_screen() -> None:
    """Two runtimes of three outputs each in hundreds of cases, with much that was left out."""
    rows = [
        row(case=f"case {case}", runtime=runtime, output=output, error=case * 1e-9)
        for case in range(100)
        for runtime in ("eager", "onnxruntime:tensorrt-rtx")
        for output in ("attention_output", "key_cache_out", "value_cache_out")
    ]
    rows += [row(runtime="file", case="weights in the file", output="q_proj.weight", error=0.0)]
    report = Report(
        weights="proven",
        rows=rows,
        skipped=[{"runtime": f"runtime {x}", "reason": "is missing " * 20} for x in range(4)],
        left_out=[f"corner {x} is too large" for x in range(20)],
        not_visible=[{"feature": f"feature {x % 3}", "reason": "small " * 30} for x in range(9)],
        quantization_error={"relative L2": 0.1, "scaled max": 0.2},
        numbers="unverified",
    )
    lines = printed(report)
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("passed: 601 comparisons, 0 failed; weights proven")
    worst = [line for line in lines if "case 99" in line]
    assert len(worst) == 6
    for word in ("runtime 3", "feature 2", "corner 0", "left out: 20"):
        assert any(word in line for line in lines)


def test_everything_that_failed_is_printed_whole() -> None:
    failed = [
        row(case=f"{x}x1, past 3, positions drawn, left padding", error=1.0, status="failed")
        for x in range(40)
    ]
    report = Report(weights="proven", rows=[ROW, *failed], problems=["7 more cases: it broke"])
    lines = printed(report)
    assert lines[0].startswith("failed: 41 comparisons, 40 failed")
    assert "7 more cases: it broke" in lines
    text = " ".join(" ".join(lines).split())
    assert all(f" {x}x1, past 3" in text for x in range(40))


def test_what_failed_in_many_layers_is_a_line_for_each_kind() -> None:
    """Of a decoder: the worst layer, and every case of the logits."""
    failed = [
        row(output=f"layers.{x + 1}/hidden_states", error=1.0 + x, status="failed")
        for x in range(40)
    ]
    failed += [row(case=f"text {x}", output="logits", error=1.0, status="failed") for x in (1, 2)]
    lines = printed(Report(weights="proven", rows=[ROW, *failed]))
    assert [line for line in lines if "hidden_states" in line] == [
        line for line in lines if "layers.40/hidden_states" in line
    ]
    assert sum("logits" in line for line in lines) == 2


def test_of_many_outputs_the_worst_are_printed() -> None:
    """Those of no layer, of which each is a line."""
    rows = [row(output=f"state.{x}", error=x * 1e-9) for x in range(60)]
    lines = printed(Report(weights="proven", rows=rows))
    assert len(lines) <= 24
    assert [line.split()[1] for line in lines if "state." in line] == [
        f"state.{x}" for x in range(59, 59 - MOST, -1)
    ]
    assert any("50 outputs more" in line for line in lines)


def test_why_nothing_was_compared_is_printed_whole() -> None:
    report = Report(weights="proven", skipped=[{"runtime": "x", "reason": "no driver " * 20}])
    assert " ".join(" ".join(printed(report)).split()).count("no driver") == 20

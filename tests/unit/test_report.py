"""What `verify` prints: the verdict first, on one screen, and everything that failed."""

import dataclasses
import io

from rich.console import Console

from rope_export.parity import Report, Row
from rope_export.parity.report.decoder_rows import MOST_FAILED
from rope_export.parity.report.tables import MOST, summary, table

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


def decoder_rows(layers: int = 30, **facts: object) -> list[Row]:
    """What two runtimes and eager give in twenty cases of a decoder, the worst in layer 17."""
    rows = [
        row(case="greedy, 8 x 64 tokens, 3 near ties", runtime=runtime, output="text", **facts)
        for runtime in ("onnxruntime", "onnxruntime:cuda")
    ]
    for runtime in ("eager", "onnxruntime", "onnxruntime:cuda"):
        for case in range(20):
            names = [] if runtime == "eager" else ["logits"]
            for at in range(layers):
                names += [f"layers.{at + 1}/hidden_states", f"present.{at}.key"]
                names.append(f"present.{at}.value")
            for name in names:
                error = 9e-7 if ".17" in name else 1e-9 * case
                values = {"error": error, "case": f"left padding, call {case}", **facts}
                rows.append(row(runtime=runtime, output=name, **values))
    return rows


def test_of_a_decoder_the_worst_of_each_kind_is_printed_on_a_screen() -> None:
    lines = printed(Report(weights="proven", rows=decoder_rows()))
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    start = next(at for at, line in enumerate(lines) if line.startswith("runtime"))
    shown = [line.split()[:2] for line in lines[start + 1 :]]
    kinds = ["logits", "text", "layers.17/hidden_states", "present.17.key"]
    expected = [
        [runtime, kind] for runtime in ("onnxruntime", "onnxruntime:cuda") for kind in kinds
    ]
    assert shown == [*expected, ["eager", kinds[2]], ["eager", kinds[3]]]
    for runtime in ("onnxruntime", "onnxruntime:cuda"):
        assert f"text on {runtime}: greedy, 8 x 64 tokens, 3 near ties." in lines


def test_what_failed_in_many_layers_is_told_by_the_first_of_them() -> None:
    """Of a decoder: every case of the logits, and the first layers that are wrong."""
    failed = [
        row(output=f"layers.{x}/hidden_states", error=1.0, status="failed")
        for x in range(40, 3, -1)
    ]
    failed += [row(case=f"text {x}", output="logits", error=1.0, status="failed") for x in (1, 2)]
    lines = printed(Report(weights="proven", rows=[ROW, *failed]))
    shown = [line.split()[1] for line in lines if "hidden_states" in line]
    assert shown == [f"layers.{x}/hidden_states" for x in range(4, 4 + MOST_FAILED)]
    assert sum("logits" in line for line in lines) == 2
    more = f"... and {37 - MOST_FAILED} more; all are 39 in 37 layers from 3 to 39."
    assert more in lines


def test_all_rows_of_a_decoder_are_in_its_table() -> None:
    rows = decoder_rows(layers=2)
    console = Console(file=io.StringIO(), width=150)
    console.print(table(Report(weights="proven", rows=rows), "title"))
    assert console.file.getvalue().count("left padding") == len(rows) - 2


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

"""Judge, harness and report take any subject: here a stack of two toy layers with other names."""

import ast
import io
import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from rope_export import parity
from rope_export.parity.harness import compare
from rope_export.parity.report.tables import summary, table
from tests.support.interfaces import decoder_interface
from tests.support.toy_stack import ToyExpected, ToySubject

KINDS = [("growing", 2), ("growing", 1), ("fixed", 2), ("fixed", 3)]


def changing(output: str, index: tuple, by: float = 1e-3):
    """A fault: one element of one output is off."""

    def fault(outputs):
        outputs[output][index] += by
        return outputs

    return fault


def failed(report) -> set[tuple[str, str, str]]:
    return {(r.runtime, r.output, r.metric) for r in report.rows if r.status == "failed"}


@pytest.mark.parametrize(("cache", "axis"), KINDS)
def test_a_sound_stack_passes_layer_by_layer_and_end_to_end(cache, axis) -> None:
    subject = ToySubject(decoder_interface(cache, axis=axis))
    report = compare(subject)
    assert report.passed, failed(report)
    by_runtime = {(row.runtime, row.output) for row in report.rows}
    outputs = {"logits"} | {f"present.{n}.{part}" for n in range(2) for part in ("key", "value")}
    assert by_runtime == {(runtime, x) for runtime in ("eager", "toy") for x in outputs}
    unchanged = {row.output for row in report.rows if row.metric == "past values changed"}
    assert unchanged == outputs - {"logits"}
    assert subject.kept["status"] == "passed"
    assert any(row.case == "a row alone" and row.runtime == "toy" for row in report.rows)


@pytest.mark.parametrize(("cache", "axis"), KINDS)
def test_a_fault_is_found_in_the_layer_that_has_it(cache, axis) -> None:
    interface = decoder_interface(cache, axis=axis)
    first = (0,) * 4  # slot 0 of the first row: past where there is one
    past = compare(ToySubject(interface, fault=changing("present.1.value", first, 1e-7)))
    assert ("toy", "present.1.value", "past values changed") in failed(past)
    assert {output for _, output, _ in failed(past)} == {"present.1.value"}
    wrong = compare(ToySubject(interface, fault=changing("logits", (-1, -1, -1))))
    assert {output for _, output, _ in failed(wrong)} == {"logits"}


@pytest.mark.parametrize(("cache", "index"), [("growing", -1), ("fixed", 7)])
def test_what_a_call_writes_behind_a_past_is_judged_by_its_error(cache, index) -> None:
    """The case of one token after 7: its slot alone is wrong, and nothing that was there before."""

    def fault(outputs):
        if outputs["logits"].shape[:2] == (1, 1):
            outputs["present.0.key"][:, :, index] += 1e-3
        return outputs

    report = compare(ToySubject(decoder_interface(cache), fault=fault))
    wrong = {(r.case, r.output, r.metric) for r in report.rows if r.status == "failed"}
    name = "1x1, past 7"
    assert wrong == {(name, "present.0.key", x) for x in ("relative L2", "scaled max")}


def test_another_shape_is_a_row_where_float16_overflows_too() -> None:
    class Overflowing(ToyExpected):
        def stages(self):
            yield "products", np.array([1e6])

    class Half(ToySubject):
        dtype = "float16"

        def expected(self, case, inputs):
            return Overflowing(**vars(super().expected(case, inputs)))

    report = compare(
        Half(
            decoder_interface("growing"),
            shared=lambda outputs: outputs | {"logits": np.full_like(outputs["logits"], np.inf)},
            fault=lambda outputs: outputs | {"logits": outputs["logits"][..., :3]},
        )
    )
    assert ("toy", "logits", "shape or dtype") in failed(report)
    assert any("float16 overflows" in line for line in report.problems)


def test_tokens_that_attend_to_nothing_are_not_judged() -> None:
    interface, fault = decoder_interface("growing"), changing("logits", (0, 0))
    assert compare(ToySubject(interface, fault=fault)).status == "failed"
    assert compare(ToySubject(interface, fault=fault, blind=True)).passed


def test_slots_beyond_the_new_tokens_are_nobody_s() -> None:
    interface = decoder_interface("fixed")
    last = (0, 0, -1, 0)
    assert compare(ToySubject(interface, fault=changing("present.0.key", last, 9.0))).passed


def test_what_eager_and_the_session_share_fails_too() -> None:
    fault = changing("present.0.key", (0, 0, -1, 0))
    report = compare(ToySubject(decoder_interface("growing"), fault=fault, shared=fault))
    assert {("eager", "present.0.key", "scaled max")} <= failed(report)
    assert {runtime for runtime, _, _ in failed(report)} == {"eager", "toy"}


def test_its_report_is_printed_with_its_names() -> None:
    report = compare(ToySubject(decoder_interface("growing")))
    console = Console(file=io.StringIO(), width=80)
    console.print(summary(report, "toy"))
    printed = console.file.getvalue()
    assert printed.startswith("passed: ")
    assert re.search(r"^toy +present\.\d\.(key|value) ", printed, re.M)
    wide = Console(file=io.StringIO(), width=150)
    wide.print(table(report, "toy"))
    rows = [one for one in report.rows if one.case == "a row alone"]
    assert wide.file.getvalue().count("a row alone") == len(rows) > 0


CORE = [
    p for folder in ("", "report") for p in (Path(parity.__file__).parent / folder).glob("*.py")
]


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.stem)
def test_the_core_of_parity_names_no_subject(path: Path) -> None:
    text = path.read_text()
    for word in ("TensorRT", "attention_output", "hidden_states", "RotaryAttention", "Engine("):
        assert word not in text
    if path.name == "__init__.py":  # what it re-exports
        return
    imported = {x.module for x in ast.walk(ast.parse(text)) if isinstance(x, ast.ImportFrom)}
    parts = ("rope_export.parity.layer", "rope_export.parity.engine", "rope_export.engines")
    assert not [name for name in imported if name.startswith((*parts, "rope_export.attention"))]


def test_numbers_that_are_not_finite_fail_in_silence() -> None:
    nan = changing("logits", (0, 0, 0), np.nan)
    assert compare(ToySubject(decoder_interface("growing"), fault=nan)).status == "failed"

"""A report as JUnit XML, which continuous integration shows: a test for each row.

Source: the format as junitparser writes it, https://github.com/testmoapp/junitxml.
"""

import re
from collections.abc import Callable
from typing import Any

from rope_export.errors import extra
from rope_export.parity.report.lines import every_line
from rope_export.parity.report.result import Report
from rope_export.parity.report.words import figure
from rope_export.parity.rows import Row

NAME = "rope_export verify"
"""Of the whole; a file without it is not replaced."""

ILLEGAL = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What no XML file may have, such as the colours of a terminal in somebody's error.

Source: XML 1.0, section 2.2, the production Char.
"""

Spell = Callable[[str], str]
Command = Callable[[Row | None], str]


def check_junit() -> None:
    """Raises: UnavailableError where junitparser is missing."""
    with extra("report", "a report in JUnit's format"):
        import junitparser  # noqa: F401


def as_junit(report: Report, title: str, command: Command, spell: Spell = str) -> bytes:
    """The file: a suite for each runtime, the tests that ran in it; a runtime that was asked for
    and could not run is a test that is skipped, and a verdict that no row shows is an error. Of a
    sweep each cell is a test.

    command: reproduces a row. spell: rewrites sentences for those who read them.
    """
    from junitparser import Error, Failure, JUnitXml, Skipped, TestCase, TestSuite

    whole = JUnitXml(NAME)
    suites: dict[str, list[TestCase]] = {}
    for cell in () if report.cells is None else report.cells.every:
        test = TestCase(cell.artifact, f"{title}.{cell.runtime}", cell.seconds)
        if cell.status in ("refused", "skipped"):
            test.result = [Skipped(spell(f"{cell.status}: {cell.reason}"))]
        elif cell.status == "crashed":
            test.result = [Error(spell(cell.reason), cell.status)]
        elif cell.status == "failed":
            failures = [_failure(row, command) for row in cell.failures(report.rows)]
            test.result = failures or [Failure(spell(cell.reason), "verdict")]
        suites.setdefault(cell.runtime, []).append(test)
    for row in report.rows if report.cells is None else ():
        test = TestCase(f"{row.case}: {row.output}, {row.metric}", f"{title}.{row.runtime}", 0.0)
        if row.status == "failed":
            test.result = [_failure(row, command)]
        suites.setdefault(row.runtime, []).append(test)
    for skipped in report.skipped:
        test = TestCase("open", f"{title}.{skipped['runtime']}", 0.0)
        test.result = [Skipped(spell(skipped["reason"]))]
        suites.setdefault(skipped["runtime"], []).append(test)
    told = report.cells is not None or any(row.status == "failed" for row in report.rows)
    if report.status != "passed" and not told:
        test = TestCase("verdict", title, 0.0)
        test.result = [Error(spell(" ".join(every_line(report))), report.status)]
        suites.setdefault("verdict", []).append(test)
    for name, tests in suites.items():
        suite = TestSuite(name)
        suite.add_testcases(tests)
        whole.add_testsuite(suite)
    whole.update_statistics()
    text: bytes = whole.tostring()
    return ILLEGAL.sub("\N{REPLACEMENT CHARACTER}", text.decode()).encode()


def _failure(row: Row, command: Command) -> Any:
    from junitparser import Failure

    failure = Failure(_figures(row), "tolerance")
    failure.text = f"{_figures(row)}\n{command(row)}"
    return failure


def _figures(row: Row) -> str:
    return (
        f"{row.metric} {figure(row.error)}, tolerance {figure(row.tolerance)}, eager's "
        f"{figure(row.eager_error)}, seed {row.seed}"
    )

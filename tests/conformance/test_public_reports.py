"""The table of public reports: each row names a test that is there."""

import re
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import pytest

from tests.support import public_reports
from tests.support.public_reports import Report

TESTS = Path(__file__).parents[1]
ROWS: list[Report] = [
    row
    for module in sorted(x.name for x in iter_modules(public_reports.__path__))
    for row in import_module(f"tests.support.public_reports.{module}").REPORTS
]


def test_there_are_sixteen_or_more() -> None:
    assert len(ROWS) >= 16
    assert len({row.source for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.source[:60])
def test_a_row_is_whole_and_its_test_is_there(row: Report) -> None:
    assert all(len(text) > 8 for text in row)
    file, name = row.test.split("::")
    (path,) = TESTS.rglob(file)
    assert re.search(rf"^def {name}\(", path.read_text(encoding="utf-8"), re.M)

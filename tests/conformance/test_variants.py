"""Thirteen rotary variants in six kinds of calls, as tests/conformance/variants.py has them."""

import re

import pytest
from transformers import logging as transformers_logging

from tests.conformance.variants import CASES, PAGE, VARIANTS, prove


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "every_lowering", [False, pytest.param(True, marks=pytest.mark.long)], ids=["auto", "every one"]
)
@pytest.mark.parametrize("variant", VARIANTS)
def test_variant_is_right_in_all_six_cases(variant: str, every_lowering: bool) -> None:
    transformers_logging.set_verbosity_error()
    cells = prove(variant, every_lowering).cells
    assert {cell.case for cell in cells} == set(CASES)
    assert [cell for cell in cells if not cell.right] == []


def test_the_page_has_every_variant_right() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert len(re.findall(r"^\| [\w -]+ \(`", page, re.M)) == len(VARIANTS) == 13
    assert "wrong" not in page

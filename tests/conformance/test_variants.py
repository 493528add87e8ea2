"""Thirteen rotary variants in six kinds of calls, as tests/conformance/variants.py has them."""

import re
from itertools import product

import pytest
import torch
from transformers import logging as transformers_logging

from rope_export.decoder.pipeline import Cache
from rope_export.rope.default import plain_inv_freq
from rope_export.rope.linear import LinearRope
from tests.conformance.decoders import variants as decoders
from tests.conformance.prove_variants import PAGE
from tests.conformance.variants import CASES, VARIANTS, prove


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


QUICK = {"dynamic": "growing", "longrope": "fixed"}
"""Variants whose whole decoders are proven by default, with this cache."""


@pytest.fixture
def one_thread():
    """The proof of a decoder sets one thread, as its workers have."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("variant", "caches"),
    [
        *((variant, (cache,)) for variant, cache in QUICK.items()),
        *(pytest.param(x, ("growing", "fixed"), marks=pytest.mark.long) for x in VARIANTS),
    ],
)
def test_whole_decoder_is_right_in_all_six_cases(variant: str, caches: tuple[Cache, ...]) -> None:
    cells = decoders.prove(variant, caches).cells
    assert {(cell.case, cell.cache) for cell in cells} == set(product(CASES, caches))
    assert [cell for cell in cells if not cell.right] == []


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("one_thread")
def test_an_ignored_rope_type_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """The frequencies of the default variant in place of linear ones, as others export them."""

    def plain(self, length=None):
        return plain_inv_freq(self.rotary_dim, self.theta)

    monkeypatch.setattr(LinearRope, "inv_freq", plain)
    cells = decoders.prove("linear", ("growing",)).cells
    assert not any(cell.right for cell in cells)


def test_the_page_has_every_variant_right() -> None:
    page = PAGE.read_text(encoding="utf-8")
    layers, whole = page.split("## Whole decoders")
    for table in (layers, whole):
        assert len(re.findall(r"^\| [\w -]+ \(`", table, re.M)) == len(VARIANTS) == 13
    assert "**wrong**" not in page
    assert "156 of 156 comparisons are right" in whole

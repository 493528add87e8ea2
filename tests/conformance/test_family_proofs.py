"""Families against transformers' own modules; `python -m scripts.prove_families` runs them all."""

import pytest
import torch

from tests.conformance.families.report import SAMPLE
from tests.conformance.families.run import prove


@pytest.fixture(autouse=True)
def one_thread():
    """The proof of a family sets one thread, as its workers have."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "every_way", [False, pytest.param(True, marks=pytest.mark.long)], ids=["auto", "every way"]
)
@pytest.mark.parametrize("family", SAMPLE)
def test_family_is_proven(family: str, every_way: bool) -> None:
    """Ours in float64, then the artifact in onnxruntime: as "auto" says it, and by every lowering
    with every cache that can."""
    found = prove(family, every_way, quick=not every_way)
    assert found.status == "proven", found.reasons or found.problems
    assert not found.problems

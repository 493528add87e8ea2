"""Families against transformers' own modules; `python -m scripts.prove_families` runs them all."""

import pytest
import torch

from scripts.prove_families.report import SAMPLE
from scripts.prove_families.run import prove


@pytest.fixture(autouse=True)
def one_thread():
    """The proof of a family sets one thread, as its workers have."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", SAMPLE)
def test_family_is_proven(family: str) -> None:
    """Ours in float64, then the artifact in onnxruntime."""
    found = prove(family)
    assert found.status == "proven", found.reasons or found.problems
    assert not found.problems

"""Whole decoders against transformers; `python -m scripts.prove_decoders` runs every model."""

import pytest
import torch

from rope_export.decoder.shared import Shared
from tests.conformance.decoders.models import decoders
from tests.conformance.decoders.report import SAMPLE
from tests.conformance.decoders.run import CACHES, prove

QUICK = {name: list(CACHES)[at % 2] for at, name in enumerate(SAMPLE)}
"""One cache for each model, in turns; the other is behind the long marker."""


@pytest.fixture(autouse=True)
def one_thread():
    """The proof of a model sets one thread, as its workers have."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "cache"),
    [
        pytest.param(name, cache, marks=[] if QUICK[name] == cache else [pytest.mark.long])
        for name in SAMPLE
        for cache in CACHES
    ],
)
def test_decoder_is_proven(name: str, cache: str) -> None:
    found = prove(**decoders()[name], caches=(cache,))
    assert found.status == "proven", (found.reason, found.errors, found.eager)


REFUSED = {
    "BambaForCausalLM": "layer_types[0]='mamba' is not implemented",
    "FalconH1ForCausalLM": "model.layers.0.mamba is a FalconH1Mixer, which keeps a state",
    "GPTNeoXJapaneseForCausalLM": "layers.3.attention.dense_bias is no part of the attention",
    "DiffLlamaForCausalLM": "the difference of two attentions is not implemented",
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_done_is_refused_by_module_and_reason(name: str) -> None:
    found = prove(**decoders()[name])
    assert found.status == "refused", found
    assert "\n" not in found.reason
    assert REFUSED[name] in found.reason


@pytest.mark.filterwarnings("ignore")
def test_a_decoder_with_a_fault_is_not_proven(monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions twice as far apart."""
    values = Shared._values

    def apart(self, mask, positions, cache):
        return values(self, mask, positions * 2, cache)

    monkeypatch.setattr(Shared, "_values", apart)
    found = prove(**decoders()["LlamaForCausalLM"], caches=("growing",))
    assert found.status == "wrong"

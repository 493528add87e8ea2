"""Parameters read back from a decoder's file are those that transformers loads from the source."""

from pathlib import Path
from typing import Any

import pytest
import torch

from rope_export import export_decoder
from rope_export.artifacts.decoder import DecoderArtifact
from rope_export.parity.decoder.read_back import model_of_file
from rope_export.quantization import Quantization, pack, unpack
from rope_export.reading.models import quiet
from tests.conformance.decoders.models import TEXT, decoders, tiny_decoder
from tests.conformance.decoders.report import SAMPLE
from tests.conformance.decoders.run import model_class
from tests.conformance.families import saved

FUSED = ("Phi3ForCausalLM",)
"""Decoders whose queries, keys and values are one tensor; read back by default."""
OTHERS = [name for name in SAMPLE if decoders()[name]["kind"] == TEXT and name not in FUSED]


def exported(name: str, folder: Path, **options: Any) -> tuple[Any, DecoderArtifact]:
    """transformers' model as it loads what it saved, and our artifact of that."""
    family = decoders()[name]["family"]
    cls = model_class(family, name)
    with quiet():
        saved.save(tiny_decoder(family, cls), folder / "model")
        model = saved.load(cls, folder / "model", torch.float32)
    return model, export_decoder(folder / "model", out=folder / "out", **options)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", [*FUSED, *(pytest.param(x, marks=pytest.mark.long) for x in OTHERS)]
)
def test_every_parameter_is_read_back(name: str, tmp_path: Path) -> None:
    theirs, artifact = exported(name, tmp_path)
    with quiet():
        model, _ = model_of_file(artifact)
    expected = dict(theirs.named_parameters())
    found = dict(model.named_parameters())
    assert found.keys() == expected.keys()
    assert [x for x, value in expected.items() if not torch.equal(found[x], value)] == []


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_quantized_weights_are_read_back_dequantized(bits: Any, tmp_path: Path) -> None:
    theirs, artifact = exported("Phi3ForCausalLM", tmp_path, weights=bits, block_size=16)
    quantization = Quantization(bits=int(bits[3:]), block_size=16)
    with quiet():
        _, read_back = model_of_file(artifact)
    for name in ("model.layers.0.self_attn.qkv_proj.weight", "model.layers.1.mlp.down_proj.weight"):
        weight = theirs.get_parameter(name).detach()
        rows = unpack(pack(weight, quantization), quantization, weight.shape[1])
        assert torch.equal(read_back.read(name), torch.from_numpy(rows))

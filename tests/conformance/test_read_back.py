"""Parameters read back from a decoder's file are those that transformers loads from the source."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from rope_export import export_decoder
from rope_export.artifacts.decoder import DecoderArtifact
from rope_export.parity.decoder.read_back import model_of_file, weight_rows
from rope_export.parity.decoder.theirs import their_model
from rope_export.quantization import Quantization, pack, unpack
from rope_export.reading.models import quiet
from tests.conformance.decoders.models import TEXT, decoders, tiny_decoder
from tests.conformance.decoders.report import SAMPLE
from tests.conformance.decoders.run import model_class
from tests.conformance.families import saved
from tests.conformance.test_decoder_weights import gguf_file, tiny_folder
from tests.support.peft_adapters import adapted, model_in

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


def sources(kind: str, folder: Path) -> tuple[Path, Path | None]:
    """A source of that kind, and the adapter that belongs to it."""
    if kind == "adapter":
        base = model_in(folder / "base")
        modules = ["q_proj", "o_proj", "up_proj"]
        return base, adapted(base, folder / "adapter", target_modules=modules)
    if kind == "drawn":
        config = transformers.Phi3Config(**SMALL, pad_token_id=0, num_key_value_heads=2)
        config.architectures = ["Phi3ForCausalLM"]
        config.save_pretrained(folder)
        return folder / "config.json", None
    if kind.startswith("gguf"):
        return gguf_file(folder / "tiny.gguf", kind.partition(" ")[2]), None
    return tiny_folder("gemma3", transformers.Gemma3ForConditionalGeneration, folder), None


SMALL = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4, "vocab_size": 64}
SMALL |= {"num_hidden_layers": 2}


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "kind", ["adapter", "drawn", "gguf llama", "gguf phi3", "gguf gemma3", "multimodal"]
)
def test_files_of_every_kind_of_source_have_its_weights(kind: str, tmp_path: Path) -> None:
    source, adapter = sources(kind, tmp_path)
    artifact = export_decoder(source, adapter=adapter, out=tmp_path / "out")
    theirs = their_model(artifact.facts, str(source), None if adapter is None else str(adapter))
    assert theirs.source is not None
    with quiet():
        rows = weight_rows(artifact, theirs.source, theirs.model, 0)
    assert [row.output for row in rows if row.status == "failed"] == []
    assert len(rows) >= len(theirs.layers) * 6 + 2

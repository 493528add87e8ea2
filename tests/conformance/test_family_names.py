"""Names as they stand in files: what transformers saves is what we read."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import logging as transformers_logging

from rope_export.checkpoints import open_model
from rope_export.errors import CheckpointError, SpecError
from tests.conformance.families import cache
from tests.conformance.families.building import TinyModel
from tests.conformance.families.run import prove
from tests.conformance.families.saved import FILE, load, save
from tests.conformance.families.tiny import tiny_models

SAVED_OTHERWISE = (
    "bailing_hybrid",
    "esm",
    "flint",
    "gradium_phonon_tts",
    "gte",
    "jina_embeddings_v3",
    "lfm3",
    "lfm3_vl",
    "mimo_v2_flash",
    "molmo2",
    "nomic_bert",
    "roformer",
    "sapiens2",
    "step3p7",
)
"""Families that transformers saves under other names than its modules have, or in other shapes."""


@pytest.fixture(autouse=True)
def quiet_on_one_thread():
    transformers_logging.set_verbosity_error()
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", SAVED_OTHERWISE)
def test_what_transformers_saves_is_read(family: str) -> None:
    """The folder that transformers writes, read by us and by transformers, in float64."""
    found = prove(family, artifacts=False)
    assert found.status == "proven", found.reasons or found.problems


@pytest.mark.filterwarnings("ignore")
def test_a_proof_without_a_decode_step_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a renamed cache argument would do: the model runs, and every call is a whole prompt."""
    assert prove("llama", artifacts=False).status == "proven"
    monkeypatch.setattr(cache, "CACHE_NAMES", ("cache_of_another_name",))
    found = prove("llama", artifacts=False)
    assert found.status == "wrong"
    assert found.reasons == ("its proof holds no call of: decode",)


def first(family: str) -> TinyModel:
    return next(iter(tiny_models(family)))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("family", "ends"),
    [("esm", "rotary_embeddings.inv_freq"), ("roformer", "embed_positions.weight")],
)
def test_a_stored_rotation_that_is_not_the_config_s_is_refused(
    family: str, ends: str, tmp_path: Path
) -> None:
    """transformers rotates by the tensor of the file, and says nothing."""
    tiny = first(family)
    save(tiny, tmp_path)
    tensors = load_file(tmp_path / FILE)
    (name,) = [x for x in tensors if x.endswith(ends)]
    open_model(tmp_path).layer()
    tensors[name] = tensors[name].to(torch.bfloat16).float()
    save_file(tensors, tmp_path / FILE, metadata={"format": "pt"})
    theirs = load(tiny.model_class, tmp_path).state_dict()
    (stored,) = [x for key, x in theirs.items() if key.endswith(name.rpartition(".*.")[2][-20:])]
    assert torch.equal(stored.float(), tensors[name])
    with pytest.raises(CheckpointError, match=r"differs by .* from what the config says"):
        open_model(tmp_path).layer()


@pytest.mark.filterwarnings("ignore")
def test_stacks_of_one_config_are_told_by_part(tmp_path: Path) -> None:
    """A codec's config is of its encoder and its decoder alike."""
    save(first("mimi"), tmp_path)
    tensors = load_file(tmp_path / FILE)
    with pytest.raises(SpecError, match="`part`=encoder"):
        open_model(tmp_path).layer()
    for part in ("encoder", "decoder"):
        ours = open_model(tmp_path, part=part).layer(1).weights()["q_proj.weight"]
        name = f"{part}_transformer.layers.1.self_attn.q_proj.weight"
        assert torch.equal(ours, tensors[name])
    with pytest.raises(SpecError, match=r"no such part.*encoder.*decoder"):
        open_model(tmp_path, part="middle").layer()


@pytest.mark.filterwarnings("ignore")
def test_a_decoder_saved_by_itself_and_within_its_model(tmp_path: Path) -> None:
    """Molmo2's file has the decoder under another path than the decoder's own file."""
    save(first("molmo2"), tmp_path)
    alone = open_model(tmp_path).layer(1).weights()
    tensors = load_file(tmp_path / FILE)
    whole = {
        f"model.transformer.blocks.{name.removeprefix('layers.')}": x
        for name, x in tensors.items()
        if name.startswith("layers.")
    }
    save_file(whole, tmp_path / FILE, metadata={"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    outer = {"model_type": "molmo2", "text_config": config}
    (tmp_path / "config.json").write_text(json.dumps(outer), encoding="utf-8")
    within = open_model(tmp_path).layer(1).weights()
    assert alone.keys() == within.keys()
    assert all(torch.equal(alone[name], within[name]) for name in alone)

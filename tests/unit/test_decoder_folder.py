"""A decoder's folder: its manifest, and the companions that people edit."""

import json
import os
from pathlib import Path

import pytest

from rope_export.artifacts.artifact import Artifact, layer_of
from rope_export.artifacts.decoder import DecoderArtifact, save_decoder
from rope_export.artifacts.folder import model_hashes
from rope_export.artifacts.saving import check_target
from rope_export.cli import run
from rope_export.engines import plan
from rope_export.engines.plan import EngineManifest, Options
from rope_export.engines.profiles import Range
from rope_export.errors import ArtifactError, InputError
from tests.support.decoder_folder import SPEC, decoder_folder, manifest
from tests.support.plans import FUSION, NETWORK

COMPANIONS = {"config.json": "{}\n", "genai_config.json": '{"model": {}}\n'}


@pytest.fixture
def decoder(tmp_path) -> DecoderArtifact:
    return decoder_folder(tmp_path / "decoder", companions=COMPANIONS)


def edit(folder: Path, name: str, text: str = '{"edited": true}') -> None:
    (folder / name).write_text(text, encoding="utf-8")


def test_a_decoder_is_opened_as_it_was_saved(decoder):
    opened = Artifact.open(decoder.path)
    assert isinstance(opened, DecoderArtifact)
    assert opened == decoder
    assert opened.facts.specs == (SPEC.to_json(),)
    assert opened.manifest.interface == manifest("fixed").interface
    assert opened.companions.keys() == COMPANIONS.keys()
    assert opened.warnings == ()


def test_a_layer_is_asked_for_and_a_decoder_is_refused(decoder):
    with pytest.raises(InputError, match=r"is a decoder, and this takes .* an attention layer"):
        layer_of(decoder)


def test_an_edited_companion_is_a_warning_and_a_changed_model_is_refused(decoder, capsys):
    edit(decoder.path, "genai_config.json")
    (decoder.path / "config.json").unlink()
    missing, changed = Artifact.open(decoder.path).warnings
    assert "config.json: is missing" in missing
    assert "genai_config.json: was edited" in changed
    assert run(["inspect", str(decoder.path), "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["companions"].keys() == COMPANIONS.keys()
    assert printed.err.count("warning: ") == 2
    with (decoder.path / "model.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ArtifactError, match="does not match the sha256"):
        Artifact.open(decoder.path)


def test_a_new_export_replaces_companions_but_those_that_were_edited(decoder):
    edit(decoder.path, "genai_config.json")
    again = {"config.json": '{"new": 1}', "genai_config.json": '{"new": 2}'}
    for _ in range(2):  # what was kept once is still known as edited
        saved = decoder_folder(decoder.path, companions=again)
        assert (decoder.path / "config.json").read_text() == '{"new": 1}'
        assert (decoder.path / "genai_config.json").read_text() == '{"edited": true}'
        (warning,) = saved.warnings
        assert "genai_config.json: was edited" in warning
    edit(decoder.path, "genai_config.json", '{"new": 2}')
    assert Artifact.open(decoder.path).warnings == ()


def test_an_edited_companion_outlives_an_export_without_it(decoder):
    edit(decoder.path, "genai_config.json")
    saved = decoder_folder(decoder.path, companions={})
    assert sorted(os.listdir(decoder.path)) == [
        "evidence.json",
        "genai_config.json",
        "manifest.json",
        "model.onnx",
    ]
    assert list(saved.companions) == ["genai_config.json"]
    assert "was edited" in saved.warnings[0]


def test_an_edit_during_an_export_is_not_lost(decoder):
    before = (decoder.path / "manifest.json").read_bytes()

    def write(folder: Path) -> None:
        edit(decoder.path, "config.json")
        (folder / "model.onnx").write_bytes((decoder.path / "model.onnx").read_bytes())
        (folder / "config.json").write_text("{}")

    with pytest.raises(ArtifactError, match="was edited meanwhile"):
        save_decoder(decoder.path, manifest("fixed"), write, {})
    assert (decoder.path / "config.json").read_text() == '{"edited": true}'
    assert (decoder.path / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("name", ["notes.txt", "tokenizer.json"])
def test_a_file_that_the_decoder_does_not_list_is_not_lost(decoder, name):
    edit(decoder.path, name)
    with pytest.raises(InputError, match=f"holds '{name}', which is not part of a decoder"):
        decoder_folder(decoder.path, companions={name: "{}"})
    assert (decoder.path / name).read_text() == '{"edited": true}'


def test_a_companion_that_is_a_link_is_refused(decoder, tmp_path):
    elsewhere = tmp_path / "elsewhere.json"
    elsewhere.write_text("{}")
    (decoder.path / "config.json").unlink()
    (decoder.path / "config.json").symlink_to(elsewhere)
    with pytest.raises(InputError, match=r"holds 'config.json', a link"):
        decoder_folder(decoder.path, companions=COMPANIONS)


def test_a_layer_does_not_replace_a_decoder(decoder):
    with pytest.raises(InputError, match=r"holds 'config\.json', which is not part of an artifact"):
        check_target(decoder.path, Artifact)
    bare = decoder_folder(decoder.path.with_name("bare"))
    with pytest.raises(InputError, match=r"is not an artifact .* \(.*is that of a decoder\)"):
        check_target(bare.path, Artifact)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"companions": {"../x.json": {"sha256": "0", "bytes": 1}}}, "no name of a file beside"),
        ({"companions": {"model.onnx": {"sha256": "0", "bytes": 1}}}, "no name of a file beside"),
        ({"layers": [0, 1]}, r"layers\[1\]=1: there are 1 specs"),
        ({"cache": "growing"}, "cache='growing': its tensors have 'fixed'"),
        ({"logits": "first"}, "logits='first': invalid enum value"),
        ({"surplus": 1}, "surplus"),
    ],
    ids=str,
)
def test_a_manifest_that_contradicts_itself_is_refused(decoder, change, message):
    path = decoder.path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ArtifactError, match=message):
        Artifact.open(decoder.path)


def test_inspect_shows_a_decoder_in_short(decoder, capsys):
    assert run(["inspect", str(decoder.path)]) == 0
    shown = capsys.readouterr().out
    assert "past_key_values.0-1.key float32(batch, 2, capacity, 8)" in shown
    assert "0-1: spec 0" in shown
    assert "genai_config.json: 0.0 MB" in shown


def test_an_engine_takes_the_companions_along(decoder, tmp_path):
    """As they are now, so that texts can be generated from its folder; an edit there is kept."""
    edit(decoder.path, "genai_config.json")
    sizes = {axis: Range(min=1, opt=1, max=1) for axis in ("batch", "sequence")}
    facts = EngineManifest(
        engine="tensorrt",
        version="10",
        compute_capabilities=("8.9",),
        gpu=None,
        ranges=(sizes,),
        options=Options(),
        inputs=(),
        outputs=(),
        network=NETWORK,
        fusion=FUSION,
        model=model_hashes(decoder),
    )
    (tmp_path / "copy").mkdir()
    engine = plan.save(tmp_path / "engine", decoder.copied(tmp_path / "copy"), facts, b"plan")
    inner = engine.path / "artifact"
    for name in COMPANIONS:
        assert (inner / name).read_text() == (decoder.path / name).read_text()
    (warning,) = engine.artifact.warnings
    assert "genai_config.json: was edited" in warning
    with pytest.raises(InputError, match=r"is not an engine .*genai_config\.json: was edited"):
        plan.save(engine.path, decoder, facts, b"plan")

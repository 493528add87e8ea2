"""Engines of whole decoders: one plan for the model, fusion by layer, the runtime, the proof."""

import json
from collections.abc import Callable

import numpy as np
import pytest
import torch

from rope_export import build_engine, export_decoder, open_session, verify
from rope_export.artifacts.decoder import DecoderArtifact
from rope_export.cli import run
from rope_export.engines import fusion
from rope_export.engines.network import Names, NetworkFacts
from rope_export.engines.plan import Engine
from rope_export.errors import InputError, ProfileError
from rope_export.parity.harness import compare
from rope_export.parity.subject import Request
from rope_export.parity.subjects.engine import make_subject
from rope_export.runtimes.tensorrt import EngineRunner
from rope_export.sessions import Session
from tests.support.fake_context import FakeMachine
from tests.support.gpus import without_gpu

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 512,
}
CAPACITY = 24
PROFILES = {
    "fixed": (
        f"batch=1:1:2,sequence=1:8:16,capacity={CAPACITY}",
        f"batch=1:1:2,sequence=1,capacity={CAPACITY}",
    ),
    "growing": ("batch=1:1:2,sequence=1:8:16,past=0:0:16", "batch=1:1:2,sequence=1,past=0:8:32"),
}


@pytest.fixture(scope="module")
def decoder(tmp_path_factory) -> Callable[..., DecoderArtifact]:
    """Two drawn layers of Llama, exported for TensorRT."""
    folder, exported = tmp_path_factory.mktemp("decoders"), {}
    config = folder / "config.json"
    config.write_text(json.dumps(LLAMA))

    def export(cache: str, dtype: str = "float16", lowering: str = "tensorrt") -> DecoderArtifact:
        key = cache, dtype, lowering
        if key not in exported:
            out = folder / "-".join(key)
            exported[key] = export_decoder(
                config, out=out, lowering=lowering, cache=cache, dtype=dtype
            )
        return exported[key]

    return export


@pytest.fixture(scope="module")
def engine(decoder, tmp_path_factory) -> Callable[[str], Engine]:
    folder, built = tmp_path_factory.mktemp("engines"), {}

    def build(cache: str) -> Engine:
        if cache not in built:
            built[cache] = build_engine(
                decoder(cache),
                out=folder / cache,
                profiles=PROFILES[cache],
                compute_capabilities=["8.9"],
                require_fused=True,
                cache=folder / "cache",
            )
        return built[cache]

    return build


@pytest.mark.parametrize("cache", PROFILES)
def test_attention_and_caches_are_fused_in_every_layer(engine, cache, capsys) -> None:
    facts = engine(cache).facts
    assert (facts.network.rotary, facts.network.attention) == (4, 2)
    assert facts.network.kv_cache_updates == (4 if cache == "fixed" else 0)
    assert (facts.fusion.fused, facts.fusion.unfused) == (True, ())
    assert len(facts.fusion.kernels) == 4  # one for each layer and profile
    assert isinstance(engine(cache).artifact, DecoderArtifact)
    assert run(["inspect", str(engine(cache).path)]) == 0
    shown = capsys.readouterr().out
    assert PROFILES[cache][0] in shown


def test_what_is_not_fused_is_named_by_layer(decoder, tmp_path) -> None:
    """There is no kernel in float32."""
    options = {"profiles": PROFILES["growing"], "compute_capabilities": ["8.9"], "cache": tmp_path}
    source, out = decoder("growing", "float32"), tmp_path / "engine"
    told = build_engine(source, out=out, **options).facts.fusion
    assert told.unfused == ("layers.0/Attention", "layers.1/Attention")
    with pytest.raises(InputError, match=r"\(layers\.0/Attention, layers\.1/Attention\)"):
        build_engine(source, out=tmp_path / "other", require_fused=True, **options)
    assert not (tmp_path / "other").exists()


def kernel(layer: int, profile: int, name: str = "_gemm_mha_v2") -> str:
    told = f"Metadata: [ONNX Layer: layers.{layer}/Attention]"
    return f"Name: {name}_myl{profile}_{layer}, LayerType: kgen, Inputs: [], {told}\n"


def test_a_layer_that_one_profile_leaves_apart_is_named() -> None:
    """The list of layers has both profiles, so their kernels are as many as there are layers."""
    network = NetworkFacts(rotary=4, attention=2, kv_cache_updates=0, head_dims=(16, 16))
    names = Names(attention=("layers.0/Attention", "layers.1/Attention"), inputs=("input_ids",))
    reads = "Name: in, Inputs: [ {{ Name: input_ids{}, Dimensions: [-1] }}]\n".format
    both = "Layers:\n" + reads("") + kernel(0, 1) + reads(" [profile 1]") + kernel(0, 3)
    fused = fusion.read_fusion([both + kernel(1, 1) + kernel(1, 3)], network, "float16", names)
    assert (fused.fused, fused.unfused) == (True, ())
    apart = fusion.read_fusion([both + kernel(1, 1)], network, "float16", names)
    assert (apart.fused, apart.unfused) == (False, ("layers.1/Attention",))
    assert "no attention kernel" in apart.reason
    assert "layers.1/Attention" in apart.reason


def test_lengths_that_may_be_left_out_are_refused(decoder, tmp_path) -> None:
    with pytest.raises(InputError, match=r"cache_lengths may be left out.*lowering 'tensorrt'"):
        build_engine(decoder("fixed", "float32", "standard"), out=tmp_path / "engine")


# -------------------------------------------------------------------------------- the runtime


def planned(engine: Engine) -> tuple[FakeMachine, Session]:
    machine = FakeMachine(engine)
    return machine, Session(engine.manifest, EngineRunner(engine, machine.context, machine.device))


@pytest.mark.parametrize("cache", PROFILES)
def test_a_stream_on_the_plan_gives_what_the_model_gives(engine, cache) -> None:
    """A prompt with padding, then tokens one by one, in caches that stay where they are."""
    machine, session = planned(engine(cache))
    ids = np.arange(3, 13).reshape(2, 5)
    mask = np.array([[1] * 5, [0, 0, 1, 1, 1]])
    with open_session(engine(cache)) as model:
        streams = [x.start(batch=2, capacity=CAPACITY) for x in (session, model)]
        first, second = (x.step(ids, attention_mask=mask) for x in streams)
        assert first.shape == (2, 1, 128)
        for token in range(4):
            np.testing.assert_array_equal(first, second)
            first, second = (x.step(np.full((2, 1), 20 + token)) for x in streams)
    assert [call["profile"] for call in machine.calls] == [0, 1, 1, 1, 1]
    places = {
        call["addresses"][pair.input] for call in machine.calls for pair in session.interface.caches
    }
    assert cache == "growing" or len(places) == 4
    assert machine.device.replays == (2 if cache == "fixed" else 0)
    held = streams[0]._caches.tensors.values()  # of a plan, on its device, whatever the tokens are
    assert len(held) == 4
    assert all(isinstance(tensor, torch.Tensor) for tensor in held)
    with pytest.raises(ProfileError, match="batch = 3"):
        session.start(batch=3, capacity=CAPACITY).step(np.ones((3, 1), np.int64))


# -------------------------------------------------------------------------------------- proof


@without_gpu
def test_the_model_passes_at_the_corners_of_the_profiles(engine, monkeypatch) -> None:
    monkeypatch.setattr("rope_export.parity.subjects.decoder.regular_texts", lambda *_: [])
    report = verify(engine("fixed"))
    assert (report.status, report.weights, report.numbers) == ("passed", "proven", "unverified")
    assert report.left_out == []
    cases = {row.case for row in report.rows if row.output == "logits"}
    for words in ("2x1, past 0", "1x16, past 8, cache full", "2x1, past 23, 0, cache full"):
        assert f"corner {words}" in cases
    assert any(row.case == "structure of the network" for row in report.rows)
    assert engine("fixed").evidence["parity"]["numbers"] == "unverified"


@pytest.mark.parametrize("wrong", [0.0, 0.5])
def test_the_plan_is_judged_where_it_can_be_run(engine, monkeypatch, wrong) -> None:
    """With logits and caches that are off, it fails; what no profile takes is told."""
    machine, session = planned(engine("growing"))
    machine.wrong = wrong
    subject = make_subject(engine("growing"), Request())
    monkeypatch.setattr(subject, "open", lambda runtime: session)
    report = compare(subject, runtimes=["tensorrt-rtx"])
    status = "failed" if wrong else "passed"
    assert report.status == status
    assert report.numbers.startswith(f"{status} on")
    assert "texts outside of the profiles of tensorrt-rtx: 1." in report.left_out
    assert any("no text was generated" in line for line in report.left_out)
    ran = {row.case for row in report.rows if row.runtime == "tensorrt-rtx"}
    assert "corner 1x1, past 32" in ran


def test_corners_that_are_too_large_are_named(engine, monkeypatch) -> None:
    monkeypatch.setattr("rope_export.parity.subjects.decoder_engine.AFFORDABLE", 1500)
    subject = make_subject(engine("growing"), Request())
    assert any("1x16, past 0" in line and "`large`" in line for line in subject.left_out)
    assert "corner 1x1, past 32" in {text.name for text in subject.texts()}
    assert not make_subject(engine("growing"), Request(large=True)).left_out


# ------------------------------------------------------------------------------- a real model


@pytest.mark.long
@pytest.mark.parametrize("cache", PROFILES)
def test_smollm2_becomes_one_fused_engine(smollm2, cache, tmp_path) -> None:
    options = {"lowering": "tensorrt", "cache": cache, "dtype": "float16"}
    source = export_decoder(smollm2, out=tmp_path / "decoder", **options)
    assert (source.path / "model.onnx.data").stat().st_size > 200e6
    engine = build_engine(
        source, out=tmp_path / "engine", require_fused=True, cache=tmp_path / "cache"
    )
    facts = engine.facts
    assert (facts.network.rotary, facts.network.attention) == (60, 30)
    assert facts.network.kv_cache_updates == (60 if cache == "fixed" else 0)
    assert len(facts.fusion.kernels) == 60
    prompt = np.array([[504, 3575, 282, 4649, 314]])  # The capital of France is
    with open_session(engine) as session:
        stream = session.start(batch=1, capacity=16)
        assert int(stream.step(prompt).argmax()) == 7042  # Paris

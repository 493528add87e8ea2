"""The benchmark of decoders: what it counts, and whom it refuses. No speed is asserted here."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from rope_export.artifacts.decoder import DecoderArtifact
from rope_export.bench import Choice, Plan, Shape, benchmark, harness, proof, table
from rope_export.bench.decoder_work import DecoderWork
from rope_export.bench.roofline import Limits
from rope_export.decoder.pipeline import export_decoder
from rope_export.errors import InputError
from rope_export.parity.report.result import Report
from tests.conftest import TINY
from tests.support.decoder_folder import decoder_folder

QUICK = Plan(rounds=2, seconds=0.0, calls=1, warm_seconds=0.0, warm_calls=1)
SHAPES = (Shape(batch=1, sequence=1, past=8), Shape(batch=2, sequence=4, past=0))
CONFIG = TINY | {"vocab_size": 96, "intermediate_size": 160, "max_position_embeddings": 128}


@pytest.fixture(autouse=True)
def _known_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring the machine takes seconds, and has tests of its own."""
    limits = Limits(threads=1, bandwidth=48e9, rate=119e9, cache_bytes=0)
    monkeypatch.setattr(harness, "measured_limits", lambda threads: limits)


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every decoder passes: the proof of decoders has tests of its own."""
    from tests.unit.test_bench import report

    def verify(artifact, progress) -> Report:
        artifact.record(parity={"status": "passed"})
        return report("passed")

    monkeypatch.setattr(proof, "verify", verify)


@pytest.mark.parametrize("cache", ["growing", "fixed"])
def test_decoders_are_timed(tmp_path, verified, cache):
    folder = decoder_folder(tmp_path / "decoder", cache=cache).path
    bench = benchmark([folder], shapes=SHAPES, plan=QUICK, threads=1)
    assert [row.status for row in bench.rows] == ["measured"] * 2
    decode, prompt = bench.rows
    assert decode.tokens_per_second == pytest.approx(1 / decode.timing.median)
    assert prompt.tokens_per_second == pytest.approx(8 / prompt.timing.median)
    assert decode.limit > 0
    text = table.markdown(bench)
    assert "tokens/s" in text
    assert "speed-up" not in text
    assert json.loads(json.dumps(bench.to_json()))["rows"][0]["tokens_per_second"] > 0


def test_a_wrong_decoder_is_not_timed(tmp_path, monkeypatch):
    from tests.unit.test_bench import report

    monkeypatch.setattr(proof, "verify", lambda artifact, progress: report("failed"))
    folder = decoder_folder(tmp_path / "decoder", cache="fixed").path
    bench = benchmark([folder], shapes=SHAPES[:1], plan=QUICK)
    assert (bench.status, bench.rows[0].timing) == ("wrong", None)


def test_a_shape_that_a_decoder_does_not_take(tmp_path, verified):
    folder = decoder_folder(tmp_path / "decoder", cache="fixed").path
    bench = benchmark([folder], shapes=SHAPES, plan=QUICK, capacity=5, threads=1)
    assert [row.status for row in bench.rows] == ["cannot", "measured"]
    assert "5" in bench.rows[0].reason


def test_what_is_not_done_of_decoders_is_refused(tmp_path, exported):
    folder = decoder_folder(tmp_path / "decoder", cache="growing").path
    layer = exported(TINY, lowering="portable")
    with pytest.raises(InputError, match=r"decoder is a decoder and .* an attention layer"):
        benchmark([folder, layer.path], shapes=SHAPES)
    with pytest.raises(InputError, match="`against`=eager"):
        benchmark([folder], shapes=SHAPES, choice=Choice(against=("eager",)))
    with pytest.raises(InputError, match="`memory`"):
        benchmark([folder], shapes=SHAPES, memory=True)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(True, id="tied"),
        pytest.param(False, id="untied", marks=pytest.mark.long),
    ],
)
def decoder(tmp_path_factory, request) -> tuple[DecoderArtifact, Path]:
    folder = tmp_path_factory.mktemp("work")
    config = folder / "config.json"
    config.write_text(json.dumps(CONFIG | {"tie_word_embeddings": request.param}))
    return export_decoder(config, out=folder / "out", lowering="ort", cache="fixed"), config


def test_work_is_what_transformers_model_does(decoder):
    """Products as PyTorch counts them, the head's of the last token; every weight read once, but
    for an embedding of its own."""
    from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

    artifact, path = decoder
    config = AutoConfig.from_pretrained(path, attn_implementation="eager")
    model = AutoModelForCausalLM.from_config(config).eval()
    shape = Shape(batch=2, sequence=1, past=7)
    work = DecoderWork(artifact)(shape)
    cache = DynamicCache(config=config)
    with torch.no_grad():
        model(torch.zeros(2, 7, dtype=torch.int64), cache=cache)
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(2, 1, dtype=torch.int64), cache=cache)
    assert work.flops == counter.get_total_flops()
    weights = sum(x.nbytes for x in model.parameters())
    weights -= 0 if config.tie_word_embeddings else model.get_input_embeddings().weight.nbytes
    entries = 2 * 7 * 2 * 2 * config.num_key_value_heads * config.head_dim * np.dtype("f4").itemsize
    assert 0 <= work.bytes - weights - entries < 1_000  # sizes and frequencies

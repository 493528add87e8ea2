"""`python -m scripts.benchmarks.decoders`: what its processes generate, and its page."""

import json
from contextlib import nullcontext

import pytest

from scripts.benchmarks.decoders import __main__ as program
from scripts.benchmarks.decoders.exporting import Exported, shared_checkpoint
from scripts.benchmarks.decoders.lookup import Pair
from scripts.benchmarks.decoders.measure import Rates, agreements, measured
from scripts.benchmarks.decoders.page import Facts, Results, page_lines
from scripts.benchmarks.decoders.workers import Way, Worker, WorkerError, opened
from scripts.benchmarks.peers.exports import Cost, Exporter
from tests.support.decoder_folder import decoder_folder
from tests.support.decoder_model import expected_logits

PROMPT = [3, 14, 7]
GENAI = {
    "model": {"decoder": {"num_key_value_heads": 2, "head_size": 8}},
    "search": {"past_present_share_buffer": True},
}


def greedy(ids: list[int], new: int) -> list[int]:
    """What the small model answers, by what it promises."""
    text = list(ids)
    for _ in range(new):
        text.append(int(expected_logits(text)[-1].argmax()))
    return text[len(ids) :]


@pytest.mark.parametrize("cache", ["growing", "fixed"])
def test_every_loop_gives_the_greedy_tokens(tmp_path, cache):
    told = json.loads(json.dumps(GENAI))
    told["search"]["past_present_share_buffer"] = cache == "fixed"
    companions = {"genai_config.json": json.dumps(told)}
    folder = decoder_folder(tmp_path / "decoder", cache, companions).path
    ways = [Way(name=kind, kind=kind, folder=folder) for kind in ("ours", "plain")]
    with opened(ways, 1, tmp_path) as (workers, refused):
        assert not refused
        answers = {name: worker.generate(PROMPT, 5) for name, worker in workers.items()}
        same = agreements(workers, [PROMPT, PROMPT[:1]], "plain")
    wanted = greedy(PROMPT, 5)
    for answer in answers.values():
        assert answer.ids == wanted
        assert len(answer.seconds) == 5
        assert answer.rate == pytest.approx(4 / sum(answer.seconds[1:]))
    assert same == {"ours": 64, "plain": 64}


def test_agreement_ends_with_the_first_other_token():
    from scripts.benchmarks.decoders.workers import Answer

    class Fixed(Late):
        def generate(self, ids, new, ends=()):
            return Answer(ids=[int(x) for x in self.seconds], seconds=[])

    workers = {"reference": Fixed("1234"), "other": Fixed("1294")}
    assert agreements(workers, [[0], [1]], "reference") == {"reference": 8, "other": 4}


def test_a_process_that_does_not_start_says_why(tmp_path):
    way = Way(name="none", kind="ours", folder=tmp_path / "nothing")
    with opened([way], 1, tmp_path) as (workers, refused):
        assert not workers
    assert "nothing: is not an artifact folder" in refused["none"]


class Late(Worker):
    """Takes as many seconds a token as it is told, and refuses long prompts."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def generate(self, ids, new, ends=()):
        from scripts.benchmarks.decoders.workers import Answer

        if len(ids) > 8:
            raise WorkerError("too long")
        return Answer(ids=[1] * new, seconds=[2.0] + [self.seconds] * (new - 1))


def test_rates_are_those_after_the_first_token(monkeypatch):
    monkeypatch.setattr("scripts.benchmarks.decoders.measure.measured_bandwidth", lambda _: 1e9)
    rates, bandwidths = measured(
        lambda: nullcontext({"slow": Late(0.5), "fast": Late(0.1)}),
        list(range(20)),
        pasts=(5, 12),
        rounds=2,
        threads=1,
        progress=lambda step: None,
    )
    assert rates["slow"][5].decode == pytest.approx([2.0, 2.0])
    assert rates["fast"][5].first == [2.0, 2.0]
    assert (rates["fast"][12].decode, rates["fast"][12].problem) == ([], "too long")
    assert bandwidths == [1e9, 1e9]


def test_the_page_has_every_figure(tmp_path):
    one = Exported(exporter=Exporter(name="rope_export", group="ours", command=()), out=tmp_path)
    one.bytes = 2_000_000
    one.costs = [Cost(seconds=x, peak=3_000_000) for x in (5.0, 4.0, 9.0)]
    rates = {
        "rope_export, ours": {5: Rates(decode=[40.0, 44.0], first=[0.1, 0.1])},
        "onnxruntime-genai, genai": {5: Rates(decode=[20.0, 40.0], first=[0.2, 0.2])},
        "optimum-onnx, optimum": {5: Rates(problem="it broke")},
    }
    facts = Facts(
        date="today",
        cpu="a CPU",
        load=0.0,
        threads=2,
        rounds=2,
        export_rounds=3,
        pasts=(5,),
        prompts=8,
        model="SmolLM2",
        bandwidths=[1e8],
        bytes={"float32": 2_000_000},
        slot=0,
        versions={"genai": {"onnxruntime-genai": "0.18.0"}},
        command="the command",
    )
    pair = Pair(
        plain=[10.0, 10.0], lookup=[20.0, 40.0], tokens=64, looked_up=60, same=False, short=[0.25]
    )
    results = Results(
        facts=facts,
        exports={"float32": [one]},
        rates={"float32": rates},
        same={"float32": {"rope_export, ours": 250}},
        refused={"float32": {"eager": "not here"}},
        lookup={"float32": {"repeating": [pair]}},
    )
    text = "\n".join(page_lines(results))
    assert "| rope_export | float32 | 5.0 (4.0–9.0) | 3 | 2 |" in text  # noqa: RUF001
    assert "| rope_export, ours | 42.0 (40.0–44.0) | 84 % | 250 of 256 |" in text  # noqa: RUF001
    assert "| 1.55 (1.10–2.00) |" in text  # noqa: RUF001 - 40 / 20 and 44 / 40
    assert "| optimum-onnx, optimum | it broke |" in text
    assert "| eager | not here |" in text
    assert "| float32 | repeating | 3.00 | 3.00 | 64 | 0 of 1 | 1 of 60, 0.25–0.25 |" in text  # noqa: RUF001


def test_older_versions_of_transformers_read_the_checkpoint(smollm2, tmp_path):
    folder = shared_checkpoint(smollm2, tmp_path / "checkpoint")
    config = json.loads((folder / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    assert (folder / "model.safetensors").resolve() == (smollm2 / "model.safetensors").resolve()


@pytest.mark.parametrize("option", ["peers", "weights"])
def test_unknown_names_are_refused(option, capsys):
    assert program.main([f"--{option}", "genia"]) == 2
    assert f"--{option} genia: use some of" in capsys.readouterr().err

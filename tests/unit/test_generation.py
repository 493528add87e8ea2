"""Answers of the small decoder, whose greedy text is worked out beside it, and how tokens are
drawn."""

import random
from collections import Counter

import numpy as np
import pytest
import torch
from transformers import TopPLogitsWarper

from rope_export import open_session
from rope_export.errors import InputError
from rope_export.sessions.generation import Plan, Sampling, answer_prompts, prompts, speculation
from rope_export.sessions.generation.sampling import Chooser, nucleus
from tests.support.decoder_folder import decoder_folder
from tests.support.decoder_model import greedy

KINDS = {
    "growing": {"cache": "growing"},
    "growing, all logits": {"cache": "growing", "logits": "all"},
    "fixed": {"cache": "fixed"},
    "fixed, all logits": {"cache": "fixed", "logits": "all"},
    "static mask": {"cache": "fixed", "static_mask": True},
}
PROMPTS = [[3, 15, 7, 1, 9], [2], [0, 1, 2]]


@pytest.fixture(scope="module")
def decoders(tmp_path_factory):
    """Sessions on the decoder of a kind, each opened once."""
    opened, base = {}, tmp_path_factory.mktemp("decoders")

    def make(kind: str):
        if kind not in opened:
            opened[kind] = open_session(decoder_folder(base / kind, **KINDS[kind]), threads=1)
        return opened[kind]

    yield make
    for session in opened.values():
        session.close()


def answers(session, asked, ends=frozenset(), receive=lambda row, token: False, **plan):
    return answer_prompts(session, asked, frozenset(ends), Plan(**plan), receive)[0]


@pytest.mark.parametrize("width", [1024, 2, 3])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_go_on_as_each_does_alone(decoders, monkeypatch, kind, count, width):
    """Whatever the padding of its neighbours, and in however many passes the prompt goes in."""
    monkeypatch.setattr(prompts, "TOKENS", width)
    asked = PROMPTS[:count]
    found = answers(decoders(kind), asked, max_tokens=12)
    assert [answer.ids for answer in found] == [greedy(prompt, 12) for prompt in asked]
    assert {answer.finish for answer in found} == {"length"}


@pytest.mark.parametrize("kind", ["growing", "fixed"])
def test_a_row_ends_by_itself(decoders, kind):
    """At an end token, which is not part of the answer, or when it is told to."""
    whole = [greedy(prompt, 12) for prompt in PROMPTS]
    end = whole[0][4]
    heard: list[tuple[int, int | None]] = []

    def receive(row, token):
        heard.append((row, token))
        return row == 1 and token == whole[1][2]

    found = answers(decoders(kind), PROMPTS, {end}, receive, max_tokens=12)
    for row, (answer, text) in enumerate(zip(found, whole, strict=True)):
        expected, finish = text, "length"
        if end in text:
            expected, finish = text[: text.index(end)], "end"
        if row == 1 and whole[1][2] in expected:
            expected, finish = text[: text.index(whole[1][2]) + 1], "stop"
        assert (answer.ids, answer.finish) == (expected, finish)
        assert [token for at, token in heard if at == row] == [*expected, None]


@pytest.mark.parametrize("lookup", [False, True])
def test_an_answer_ends_where_cache_or_positions_do(decoders, lookup):
    session = decoders("fixed, all logits")
    prompt = [3, 15, 7, 1, 9]
    (found,) = answers(session, [prompt], capacity=9, lookup=lookup)
    assert (found.ids, found.finish) == (greedy(prompt, 4), "full")
    (found,) = answers(session, [prompt], lookup=lookup)  # the model has 64 positions
    assert (found.ids, found.finish) == (greedy(prompt, 59), "full")
    (found,) = answers(session, [prompt], capacity=9, max_tokens=4, lookup=lookup)
    assert (found.ids, found.finish) == (greedy(prompt, 4), "length")


@pytest.mark.parametrize(
    ("asked", "plan", "message"),
    [
        ([[]], {}, "the prompt has no tokens"),
        ([[1], []], {}, "prompt 2 has no tokens"),
        ([[1] * 64], {}, "the prompt has 64 tokens; the model has 64 positions"),
        ([[1], [1] * 8], {"capacity": 8}, "prompt 2 has 8 tokens; the cache holds `capacity`=8"),
        ([], {}, "there is no prompt"),
        ([[16]], {}, "holds 16; the decoder knows the tokens 0 to 15"),
        ([[1], [2, 10**30]], {}, "prompt 2 holds 10{30}; the decoder knows"),
        ([[1, -1]], {}, "holds -1; the decoder knows"),
        ([[1.5]], {}, "holds 1.5; the decoder knows"),
        ([[1]], {"lookup": True}, "needs the logits of every token .* logits 'all'"),
        ([[1]], {"lookup": True, "sampling": Sampling(temperature=1)}, "greedy .* `temperature`"),
    ],
)
def test_what_cannot_be_answered_is_one_line(decoders, asked, plan, message):
    with pytest.raises(InputError, match=message):
        answers(decoders("fixed"), asked, **plan)


def test_a_capacity_that_a_runtime_does_not_have_is_refused(decoders, monkeypatch):
    session = decoders("fixed")
    monkeypatch.setattr(session.runner, "capacity", 12, raising=False)
    (found,) = answers(session, [[3, 15]], max_tokens=4)
    assert found.ids == greedy([3, 15], 4)
    with pytest.raises(InputError, match="capacity=8: the engine was built for a cache of 12"):
        answers(session, [[3, 15]], capacity=8)


@pytest.mark.parametrize("of", [np.array, torch.tensor])
def test_prompts_may_be_arrays(decoders, of):
    (found,) = answers(decoders("growing"), of([[3, 15, 7]]), max_tokens=4)
    assert found.ids == greedy([3, 15, 7], 4)


def test_lookup_needs_a_fixed_cache(decoders):
    with pytest.raises(InputError, match="cache 'fixed' and logits 'all'"):
        answers(decoders("growing"), [[1]], lookup=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "`temperature`=-1.0"),
        ({"temperature": float("nan")}, "`temperature`=nan"),
        ({"temperature": 1.0, "top_p": 0.0}, "`top_p`=0.0"),
        ({"temperature": 1.0, "top_p": 1.5}, "`top_p`=1.5"),
        ({"top_p": 0.5}, "nothing is drawn at `temperature`=0"),
        ({"seed": -1}, "`seed`=-1"),
    ],
)
def test_a_sampling_out_of_range_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        Sampling(**options)


@pytest.mark.parametrize("plan", [{"max_tokens": 0}, {"capacity": 1}])
def test_a_plan_out_of_range_is_refused(plan):
    (name,) = plan
    with pytest.raises(InputError, match=f"`{name}`="):
        Plan(**plan)


@pytest.mark.parametrize("top_p", [0.05, 0.4, 0.9, 0.99, 1.0])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("size", [10, 5_000])
def test_the_nucleus_is_that_of_transformers(size, temperature, top_p):
    logits = np.random.default_rng(size).standard_normal(size).astype(np.float32) * 2
    tokens, chances = nucleus(logits, temperature, top_p)
    scores = torch.from_numpy(logits.astype(np.float64))[None] / temperature
    kept = scores if top_p == 1 else TopPLogitsWarper(top_p)(None, scores)
    expected = torch.softmax(kept, -1)[0].numpy()
    assert set(tokens) == set(np.flatnonzero(expected))
    found = np.zeros(size)
    found[tokens] = chances / chances.sum()
    # exp of a float32 that was divided and subtracted from: its own size times two roundings each.
    rtol = 4 * 2**-24 * float(scores.abs().max())
    np.testing.assert_allclose(found, expected, rtol=rtol)


@pytest.mark.parametrize("temperature", [1e-30, 1e-300])
def test_next_to_no_temperature_draws_the_likeliest(temperature):
    logits = np.array([[1.0, 90.0, -3.0]], np.float32)
    for top_p in (0.5, 1.0):
        chooser = Chooser(Sampling(temperature=temperature, top_p=top_p, seed=0), 1)
        assert [chooser.choose(logits)[0] for _ in range(20)] == [1] * 20


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0)])
def test_no_token_is_made_of_logits_that_are_no_numbers(sampling):
    logits = np.array([[1.0, 2.0, 3.0], [1.0, np.nan, 3.0]], np.float16)
    with pytest.raises(InputError, match="hold a NaN"):
        Chooser(sampling, 2).choose(logits)


def test_drawn_tokens_are_as_frequent_as_they_are_likely():
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    chooser = Chooser(Sampling(temperature=1.0, seed=3), 1)
    counts = Counter(chooser.choose(logits[None])[0] for _ in range(20_000))
    for token, chance in enumerate((0.5, 0.3, 0.15, 0.05)):
        # Five standard deviations of a binomial count.
        assert abs(counts[token] - 20_000 * chance) < 5 * (20_000 * chance * (1 - chance)) ** 0.5


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_rows_draw_on_their_own_and_a_seed_repeats_them(dtype):
    logits = np.random.default_rng(0).standard_normal((30, 2, 50)).astype(dtype)

    def drawn(seed: int | None, rows: slice) -> list[list[int]]:
        chooser = Chooser(Sampling(temperature=2.0, top_p=0.9, seed=seed), logits[0, rows].shape[0])
        return [chooser.choose(step[rows]) for step in logits]

    both, first = drawn(7, slice(0, 2)), drawn(7, slice(0, 1))
    assert drawn(7, slice(0, 2)) == both
    assert [row[:1] for row in both] == first
    assert drawn(8, slice(0, 1)) != first
    logits[:, 1] = logits[:, 0]  # rows that are alike draw differently
    assert any(one != other for one, other in drawn(7, slice(0, 2)))
    assert drawn(None, slice(0, 1)) != drawn(None, slice(0, 1))


@pytest.mark.parametrize("seed", range(6))
def test_candidates_are_checked_and_taken_back(decoders, monkeypatch, seed):
    """Any number of them, right or wrong at any place: the text is the greedy one."""
    draw, prompt = random.Random(seed), PROMPTS[seed % 3]
    whole = prompt + greedy(prompt, 59)
    proposed = Counter()

    class Oracle:
        def __init__(self, tokens):
            self.tokens = list(tokens)
            self.add = self.tokens.append

        def candidates(self, count):
            found = whole[len(self.tokens) :][: draw.randrange(8)]
            if found and draw.random() < 0.7:
                found[draw.randrange(len(found))] = 11
            return 1, found

    def any_size(costs, chances, most):
        proposed[size := draw.randrange(1, most + 1)] += 1
        return size

    monkeypatch.setattr(speculation, "Lookup", Oracle)
    monkeypatch.setattr(speculation, "best_size", any_size)
    session = decoders("fixed, all logits")
    found, speed = answer_prompts(session, [prompt], frozenset(), Plan(max_tokens=40, lookup=True))
    assert found[0].ids == greedy(prompt, 40)
    assert len(proposed) > 4
    assert speed.passes == proposed.total() < speed.tokens == 39
    end = found[0].ids[23]
    (found,) = answers(session, [prompt], {end}, lookup=True)
    text = greedy(prompt, 40)
    assert (found.ids, found.finish) == (text[: text.index(end)], "end")


def test_lookup_answers_prompts_one_after_another(decoders):
    found = answers(decoders("fixed, all logits"), PROMPTS, max_tokens=20, lookup=True)
    assert [answer.ids for answer in found] == [greedy(prompt, 20) for prompt in PROMPTS]

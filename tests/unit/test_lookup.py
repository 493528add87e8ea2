"""Which candidates a text gives, and how many of them pay."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rope_export.sessions.generation.costs import LONGEST, Costs, Trust, best_size
from rope_export.sessions.generation.lookup import WIDEST, Lookup


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(1, 6))
def test_candidates_followed_the_longest_run_that_was_there_before(tokens, count):
    width, found = Lookup(tokens).candidates(count)
    longest = 0
    for run in range(1, WIDEST + 1):
        ends = [
            end
            for end in range(run, len(tokens))
            if run < len(tokens) and tokens[end - run : end] == tokens[-run:]
        ]
        if ends:
            longest, followed = run, tokens[ends[-1] :]
    assert width == longest
    if longest:
        assert len(found) == count
        assert found[: len(followed)] == followed[:count]
        for at in range(len(followed), count):  # the text repeats itself
            assert found[at] == found[at - len(followed)]
    else:
        assert not found


def test_a_text_that_grows_is_the_text_as_a_whole():
    tokens = [random.Random(0).randrange(4) for _ in range(200)]
    text = Lookup(tokens[:50])
    for token in tokens[50:]:
        text.add(token)
    assert text.candidates(9) == Lookup(tokens).candidates(9)


def costs(**seconds: float) -> Costs:
    """Measured twice, since the first pass of a size counts for what was expected."""
    measured = Costs()
    for _ in range(8):
        for name, value in seconds.items():
            measured.add(int(name[1:]), value)
    return measured


def test_costs_between_and_after_what_was_measured():
    known = costs(n1=10.0, n2=14.0, n4=18.0)
    assert known.relative(1) == 1
    assert known.relative(2) == pytest.approx(1.4)
    assert known.relative(3) == pytest.approx(1.6)
    assert known.relative(7) == pytest.approx(1.8 + 3 * 0.8 / 3)
    assert Costs().relative(1) == 1
    assert 1 < Costs().relative(8) < 2


def test_the_first_pass_of_a_size_does_not_condemn_it():
    measured = costs(n1=10.0)
    measured.add(8, 90.0)
    assert measured.relative(8) < 2
    for _ in range(8):
        measured.add(8, 90.0)
    assert measured.relative(8) == pytest.approx(9)


@pytest.mark.parametrize(
    ("chance", "seconds", "sizes"),
    [
        (1.0, {"n1": 25.0, "n8": 29.0, "n16": 36.0}, range(16, LONGEST + 2)),
        (0.9, {"n1": 8.0, "n2": 11.2, "n4": 13.9, "n8": 18.3, "n16": 29.3}, range(6, 13)),
        (0.5, {"n1": 25.0, "n8": 29.0, "n16": 36.0}, range(3, 9)),
        (0.5, {"n1": 8.0, "n2": 13.0, "n4": 20.0}, [1]),
        (0.0, {"n1": 25.0, "n8": 25.1}, [1]),
    ],
)
def test_as_many_candidates_are_checked_as_pay(chance, seconds, sizes):
    """By passes of other costs, of what was measured with a real decoder."""
    chances = [chance ** (at + 1) for at in range(LONGEST)]
    known = costs(**seconds)
    size = best_size(known, chances, LONGEST + 1)
    assert size in sizes
    assert best_size(known, chances, 1) == 1


def test_candidates_count_though_nobody_checked_them():
    trust, text = Trust(), [1, 2]
    before = trust.chances(2)
    for _ in range(10):
        trust.expect(2, len(text), [7, 8, 9])
        text += [7, 8, 0]
        trust.compare(text)
    after = trust.chances(2)
    assert after[0] > 0.9 > before[0]
    assert after[1] > 0.9
    assert after[2] < 0.1 < before[2]
    assert trust.chances(1) == Trust().chances(1)
    for _ in range(10):
        trust.expect(2, len(text), [7, 8, 9])
        text.append(3)
        trust.compare(text)
    assert trust.chances(2)[0] < 0.5


def test_candidates_wait_until_the_text_is_there():
    trust, text = Trust(), [1]
    trust.expect(1, 1, [5, 6])
    trust.compare(text)
    text.append(5)
    trust.compare(text)
    assert trust.chances(1) == Trust().chances(1)
    text.append(6)
    trust.compare(text)
    assert trust.chances(1)[1] > Trust().chances(1)[1]

"""Greedy decoding that checks several candidates in one pass."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rope_export.errors import InputError
from rope_export.sessions.generation.costs import LONGEST, Costs, Trust, best_size
from rope_export.sessions.generation.lookup import Lookup
from rope_export.sessions.generation.loop import Rows, Speed
from rope_export.sessions.generation.prompts import prefill
from rope_export.sessions.generation.sampling import Sampling, likeliest

if TYPE_CHECKING:
    from rope_export.sessions.session import Session


def check_lookup(session: "Session", sampling: Sampling) -> None:
    """Raises: InputError if several candidates cannot be checked in one pass."""
    interface = session.interface
    if not sampling.greedy:
        raise InputError(
            "`lookup` gives the text of greedy decoding; leave out `temperature`, or `lookup`."
        )
    if interface.cache != "fixed":
        raise InputError(
            "`lookup` takes back what it has cached, which a growing cache does not; export the "
            "decoder with cache 'fixed' and logits 'all'."
        )
    if interface.output(interface.main_output).shape[1] == 1:
        raise InputError(
            "`lookup` needs the logits of every token of a pass, and this decoder gives those of "
            "the last; export it with logits 'all'."
        )


def decode_by_lookup(
    session: "Session", prompt: Sequence[int], rows: Rows, row: int, slots: int, speed: Speed
) -> None:
    """Let one row of `rows` grow until it ends; its text is that of greedy decoding.

    Every pass takes the last token and some candidates after it. The logits tell which candidate
    is the first that greedy decoding would not have chosen, and what it would have: candidates up
    to there are the text, and the cache forgets the others.
    slots: of the cache. speed: what is added to.
    """
    started = time.perf_counter()
    stream = session.start(batch=1, capacity=slots)
    (token,) = likeliest(prefill(stream, [prompt]))
    speed.prompt += time.perf_counter() - started
    text, costs, trust = Lookup([*prompt, token]), Costs(), Trust()
    started = time.perf_counter()
    going = rows.take(row, token)
    while going:
        cached = len(text.tokens) - 1
        width, candidates = text.candidates(LONGEST)
        trust.expect(width, cached + 1, candidates)
        most = min(len(candidates), rows.room(row) - 1)
        size = best_size(costs, trust.chances(width), 1 + most)
        before = time.perf_counter()
        tokens = [text.tokens[-1], *candidates[: size - 1]]
        logits = np.asarray(stream.step(np.array([tokens])))
        costs.add(size, time.perf_counter() - before)
        chosen = likeliest(logits[0])
        right = agreeing(tokens[1:], chosen)
        if right < size - 1:
            stream.lengths = [cached + 1 + right]
        speed.passes += 1
        for token in chosen[: right + 1]:
            speed.tokens += 1
            text.add(token)
            going = rows.take(row, token)
            if not going:
                break
        trust.compare(text.tokens)
    speed.decode += time.perf_counter() - started


def agreeing(candidates: Sequence[int], chosen: Sequence[int]) -> int:
    """How many candidates, from the first on, are the tokens that were chosen."""
    right = 0
    while right < len(candidates) and candidates[right] == chosen[right]:
        right += 1
    return right

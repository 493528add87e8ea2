"""The pass over the prompts."""

import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rope_export.errors import InputError
from rope_export.sessions.generation.sampling import padded

if TYPE_CHECKING:
    from rope_export.sessions.session import Session
    from rope_export.sessions.stream import Stream

TOKENS = 1024
"""New tokens of one pass: attention's scores of a longer one need much memory."""

LOGITS = 1 << 26
"""Logits that one pass may give."""


def check_prompts(
    session: "Session", prompts: Sequence[Sequence[int]], capacity: int | None
) -> None:
    """Raises: InputError where there is none, for one that is empty, has a token that the decoder
    does not know, or is longer than the model's positions or the cache."""
    positions, vocabulary = session.manifest.positions, session.manifest.vocabulary
    if vocabulary is None:
        raise InputError("the artifact is that of an attention layer, which has no texts.")
    if not len(prompts):
        raise InputError("there is no prompt; give one at least.")
    for at, prompt in enumerate(prompts):
        name = "the prompt" if len(prompts) == 1 else f"prompt {at + 1}"
        if not len(prompt):
            raise InputError(f"{name} has no tokens; give one at least.")
        unknown = [x for x in prompt if not _is_token(x, vocabulary)]
        if unknown:
            raise InputError(
                f"{name} holds {unknown[0]}; the decoder knows the tokens 0 to {vocabulary - 1}."
            )
        if positions is not None and len(prompt) >= positions:
            raise InputError(
                f"{name} has {len(prompt)} tokens; the model has {positions} positions, and an "
                f"answer needs one at least. Shorten it."
            )
        if capacity is not None and len(prompt) >= capacity:
            raise InputError(
                f"{name} has {len(prompt)} tokens; the cache holds `capacity`={capacity}, and an "
                f"answer needs a slot at least. Give more, or shorten the prompt."
            )


def _is_token(token: Any, vocabulary: int) -> bool:
    try:
        return not isinstance(token, bool) and 0 <= operator.index(token) < vocabulary
    except TypeError:  # of what is no whole number
        return False


def prefill(stream: "Stream", prompts: Sequence[Sequence[int]]) -> np.ndarray:
    """Bring the prompts into the caches of a new stream.

    Prompts shorter than the longest are padded: on the right in a fixed cache, whose rows have
    lengths of their own, and on the left in a growing one.
    Returns: the logits of each prompt's last token, (rows, vocabulary).
    """
    fixed = stream.kind == "fixed"
    tokens, filled = padded(prompts, left=not fixed)
    lengths = filled.sum(axis=1)
    width = stream.interface.output(stream.interface.main_output).shape
    every = width[1] != 1
    most = max(1, min(TOKENS, LOGITS // (len(prompts) * int(width[2])))) if every else TOKENS
    last: list[np.ndarray] = [np.empty(0)] * len(prompts)
    for first in range(0, tokens.shape[1], most):
        part = slice(first, first + most)
        counts = np.clip(lengths - first, 0, tokens[:, part].shape[1])
        logits = np.asarray(_step(stream, tokens[:, part], filled[:, part], counts))
        for row, count in enumerate(counts):
            if fixed and count > 0:
                last[row] = logits[row, count - 1 if every else 0]
            elif not fixed:
                last[row] = logits[row, -1]
    return np.stack(last)


def _step(stream: "Stream", tokens: np.ndarray, filled: np.ndarray, new: np.ndarray) -> object:
    if filled.all():
        return stream.step(tokens)
    if stream.kind == "fixed":
        return stream.step(tokens, new=new)
    return stream.step(tokens, attention_mask=filled.astype(np.int64))

"""What a decoder is to go on with: short texts where it has a tokenizer, drawn tokens where not."""

from collections.abc import Sequence
from pathlib import Path
from zlib import crc32

import numpy as np

from rope_export.errors import RopeExportError
from rope_export.parity.decoder.cases import trained_length
from rope_export.sessions.generation.text import TOKENIZER, Texts
from rope_export.spec import AttentionSpec

TEXTS = (
    "The river rises in the hills and",
    "To bake bread you need flour, water and",
    "In the winter of that year the whole town",
    "def mean(values):\n    return",
    "Water boils at a lower temperature when",
    "She opened the letter, read it twice, and then she",
    "The seven days of the week are Monday, Tuesday,",
    "When the bridge was finished at last, people could",
)
"""Beginnings of prose, lists and code."""

SHORTEST = 5
"""Tokens of the shortest drawn prompt; each other one has one more than the one before it."""

LONGEST = 32
"""Tokens of a text that are taken, the first ones; a tokenizer of bytes makes more."""

TOKENS = 64
"""New tokens of each prompt."""


def generated(
    specs: Sequence[AttentionSpec], positions: int | None, prompts: Sequence[Sequence[int]]
) -> int:
    """Tokens that are generated for each prompt: a text stays where its reading in one pass and
    token by token are the same, and within the positions of the model."""
    by_length = [x for x in specs if x.rope is not None and x.rope.depends_on_length]
    ends = [x for x in (*map(trained_length, by_length), positions) if x is not None]
    return max(1, min([TOKENS, *(x - max(map(len, prompts)) for x in ends)]))


def drawn_prompts(vocabulary: int, seed: int) -> list[list[int]]:
    """As many prompts as there are texts."""
    stream = np.random.Generator(np.random.PCG64([seed, crc32(b"greedy")]))
    shape = len(TEXTS), SHORTEST + len(TEXTS) - 1
    ids = stream.integers(min(3, vocabulary - 1), vocabulary, shape)
    return [row[len(TEXTS) - 1 - at :].tolist() for at, row in enumerate(ids)]


def text_prompts(folder: Path, vocabulary: int) -> tuple[Sequence[Sequence[int]] | None, str]:
    """The tokens of each text, by the tokenizer in a decoder's folder.

    Returns: them, or none and why, in a clause; an empty one where there is no tokenizer.
    """
    if not (folder / TOKENIZER).exists():
        return None, ""
    try:
        texts = Texts(folder)
        prompts = [texts.prompt(text, chat=False)[:LONGEST] for text in TEXTS]
    except RopeExportError as error:
        return None, str(error).rstrip(".")
    if not all(prompts):
        return None, f"{TOKENIZER} makes no tokens of a text"
    largest = max(map(max, prompts))
    if largest >= vocabulary:
        return None, f"{TOKENIZER} makes token {largest}, of {vocabulary} that the model has"
    return prompts, ""

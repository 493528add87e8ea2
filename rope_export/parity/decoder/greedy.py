"""Text that the artifact generates greedily, read by the reference in one pass."""

from zlib import crc32

import numpy as np
import torch

from rope_export.arrays import to_numpy
from rope_export.errors import ProfileError
from rope_export.parity.bounds import UNIT_ROUNDOFF
from rope_export.parity.decoder.exact import Float64
from rope_export.parity.decoder.passage import called
from rope_export.parity.decoder.theirs import Theirs
from rope_export.parity.decoder.walk import Walk
from rope_export.parity.report.result import Report
from rope_export.parity.rows import Row
from rope_export.sessions import Session

PROMPTS = 8
TOKENS = 64
"""New tokens of each prompt."""

SHORTEST = 5
"""Tokens of the shortest prompt; each other one has one more than the one before it."""

NEAR = 0.01
"""Share of tokens that may be another one than the reference's, within its tolerance. Logits are
stored in the artifact's dtype: where that is bfloat16, as many more are as near as its roundoff is
larger than float16's."""

CASE = f"greedy, {PROMPTS} x {TOKENS} tokens"


class Greedy:
    """What a runtime generates for prompts of unequal length in one batch, padded on the left, and
    the reference's forwards of each prompt with its text.

    tokens: of each text.
    """

    def __init__(self, theirs: Theirs, vocabulary: int, seed: int, tokens: int = TOKENS) -> None:
        self.tokens, self.theirs = tokens, theirs
        stream = np.random.Generator(np.random.PCG64([seed, crc32(b"greedy")]))
        shape = PROMPTS, SHORTEST + PROMPTS - 1
        self.ids = stream.integers(min(3, vocabulary - 1), vocabulary, shape)
        self.mask = (np.arange(shape[1]) >= PROMPTS - 1 - np.arange(PROMPTS)[:, None]).astype(int)
        self.walks: list[Walk] = []

    def generate(self, session: Session) -> None:
        """Have a session generate the texts, and begin the reference's forwards of them.

        Raises: ProfileError if an engine is too small for them; RopeExportError if the runtime
            fails.
        """
        slots = self.ids.shape[1] + self.tokens
        if session.capacity is not None and session.capacity < slots:
            raise ProfileError(f"the texts take {slots} slots, of {session.capacity}.")
        stream = session.start(batch=PROMPTS, capacity=session.capacity or slots)
        ids, shown = self.ids, self.mask
        step, mask = ids * shown, shown
        for _ in range(self.tokens):
            positions = np.maximum(np.cumsum(shown, axis=1) - 1, 0)[:, -step.shape[1] :]
            logits = stream.step(step, positions, mask)
            step = np.argmax(to_numpy(logits)[:, -1].astype(np.float32), axis=-1)[:, None]
            mask = np.ones_like(step)
            ids, shown = (np.concatenate(x, axis=1) for x in ((ids, step), (shown, mask)))
        self.ids, self.mask = ids, shown
        self.walks = [self._walk(row) for row in range(PROMPTS)]

    def _walk(self, row: int) -> Walk:
        ids = self.ids[row, self.mask[row] == 1][None, :-1]

        def forward(model: object) -> tuple[np.ndarray, ...]:
            """By token: how far the chosen logit is below the largest, and the logits' norm."""
            positions = np.arange(ids.shape[1])[None]
            logits = called(model, ids, np.ones_like(ids), positions, None)[0, -self.tokens :]
            chosen = torch.from_numpy(self.ids[row, -self.tokens :])[:, None]
            short = logits.amax(dim=-1) - logits.gather(1, chosen)[:, 0]
            return short.numpy(), torch.linalg.vector_norm(logits, dim=-1).numpy()

        return Walk(self.theirs, forward, lambda: Float64(self.theirs.widened))

    def judge(self, report: Report, runtime: str, seed: int, tolerance: float, dtype: str) -> None:
        """tolerance: of one logit, as a share of the norm of its token's logits."""
        short, norms = (np.stack([walk.result[at] for walk in self.walks]) for at in (0, 1))
        other = short > 0
        near = NEAR * max(1.0, UNIT_ROUNDOFF[dtype] / UNIT_ROUNDOFF["float16"])
        wrong = ~(short <= 2 * tolerance * norms)  # True for NaN
        another = other & ~wrong
        case = f"{CASE}, {int(another.sum())} near ties"
        for metric, share, allowed in (
            ("tokens of another near logit", float(another.mean()), near),
            ("tokens that are not the largest", float(wrong.mean()), 0.0),
        ):
            report.rows.append(
                Row(
                    case=case,
                    seed=seed,
                    runtime=runtime,
                    output="text",
                    metric=metric,
                    error=share,
                    eager_error=0.0,
                    tolerance=allowed,
                    status="passed" if share <= allowed else "failed",
                )
            )
        if wrong.any():
            row, at = np.argwhere(wrong)[0]
            report.problems.append(
                f"greedy text of prompt {row + 1} on {runtime}: token {at + 1} is "
                f"{short[row, at]:.1e} below the reference's, {wrong.sum()} such tokens in all."
            )

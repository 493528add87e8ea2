"""Text that the artifact generates greedily, read by the reference in one pass."""

from collections.abc import Sequence

import numpy as np
import torch

from rope_export.arrays import to_numpy
from rope_export.errors import ProfileError
from rope_export.parity.decoder.cases import GREEDY
from rope_export.parity.decoder.exact import Float64
from rope_export.parity.decoder.passage import called
from rope_export.parity.decoder.theirs import Theirs
from rope_export.parity.decoder.ties import KEPT, near_ties_allowed
from rope_export.parity.decoder.verdicts import LogitTolerance
from rope_export.parity.decoder.walk import Walk
from rope_export.parity.report.result import Report
from rope_export.parity.rows import TEXT, Row
from rope_export.sessions import Session
from rope_export.sessions.generation.sampling import padded


class Greedy:
    """What a runtime generates for prompts of unequal length in one batch, padded on the left, and
    the reference's forwards of each prompt with its text.

    prompts: tokens of each. tokens: of each text.
    """

    def __init__(self, theirs: Theirs, prompts: Sequence[Sequence[int]], tokens: int) -> None:
        self.tokens, self.theirs = tokens, theirs
        self.ids, filled = padded(prompts, left=True)
        self.mask = filled.astype(int)
        self.walks: list[Walk] = []

    @property
    def case(self) -> str:
        """What it is called in a report."""
        return f"{GREEDY}, {len(self.ids)} x {self.tokens} tokens"

    def generate(self, session: Session) -> None:
        """Have a session generate the texts, and begin the reference's forwards of them.

        Raises: ProfileError if an engine is too small for them; RopeExportError if the runtime
            fails.
        """
        slots = self.ids.shape[1] + self.tokens
        if session.capacity is not None and session.capacity < slots:
            raise ProfileError(f"the texts take {slots} slots, of {session.capacity}.")
        if session.manifest.padding:
            answers = _continued(session, self.ids, self.mask, self.tokens, slots)
        else:  # one by one, without what is before a prompt
            rows = [ids[shown == 1][None] for ids, shown in zip(self.ids, self.mask, strict=True)]
            answers = np.concatenate(
                [_continued(session, row, None, self.tokens, slots) for row in rows]
            )
        self.ids = np.concatenate([self.ids, answers], axis=1)
        self.mask = np.concatenate([self.mask, np.ones_like(answers)], axis=1)
        self.walks = [self._walk(row) for row in range(len(self.ids))]

    def _walk(self, row: int) -> Walk:
        ids = self.ids[row, self.mask[row] == 1][None, :-1]

        def forward(model: object) -> tuple[np.ndarray, ...]:
            """By token: how far the chosen logit is below the largest, the logits' norm, and the
            largest ones."""
            positions = np.arange(ids.shape[1])[None]
            logits = called(model, ids, np.ones_like(ids), positions, None)[0, -self.tokens :]
            chosen = torch.from_numpy(self.ids[row, -self.tokens :])[:, None]
            short = logits.amax(dim=-1) - logits.gather(1, chosen)[:, 0]
            largest = logits.topk(min(KEPT, logits.shape[-1])).values
            norms = torch.linalg.vector_norm(logits, dim=-1)
            return short.numpy(), norms.numpy(), largest.numpy()

        return Walk(self.theirs, forward, lambda: Float64(self.theirs.widened))

    def judge(
        self, report: Report, runtime: str, seed: int, tolerance: LogitTolerance, dtype: str
    ) -> None:
        """tolerance: of the logits of the other texts."""
        short, norms, largest = (
            np.concatenate([walk.result[at] for walk in self.walks]) for at in range(3)
        )
        other = short > 0
        wrong = ~(short <= 2 * tolerance.largest * norms)  # True for NaN
        another = other & ~wrong
        near = near_ties_allowed(largest, norms, tolerance, dtype)
        case = f"{self.case}, {int(another.sum())} near ties"
        for metric, share, allowed in (
            ("tokens of another near logit", float(another.mean()), near),
            ("tokens that are not the largest", float(wrong.mean()), 0.0),
        ):
            report.rows.append(
                Row(
                    case=case,
                    seed=seed,
                    runtime=runtime,
                    output=TEXT,
                    metric=metric,
                    error=share,
                    eager_error=0.0,
                    tolerance=allowed,
                    status="passed" if share <= allowed else "failed",
                )
            )
        if wrong.any():
            first = int(np.flatnonzero(wrong)[0])
            row, at = divmod(first, self.tokens)
            report.problems.append(
                f"greedy text of prompt {row + 1} on {runtime}: token {at + 1} is "
                f"{short[first]:.1e} below the reference's, {wrong.sum()} such tokens in all."
            )


class NoText(Greedy):
    """In place of texts where none is generated: of a file without a cache, or of some cases."""

    def __init__(self) -> None:
        self.walks = []


def _continued(
    session: Session, ids: np.ndarray, shown: np.ndarray | None, tokens: int, slots: int
) -> np.ndarray:
    """So many tokens that a session chooses after each row, (rows, tokens).

    shown: 1 for the tokens of `ids` that are no padding; none if all are. slots: of a fixed cache.
    """
    stream = session.start(batch=len(ids), capacity=session.capacity or slots)
    step, mask, chosen = ids if shown is None else ids * shown, shown, []
    for _ in range(tokens):
        positions = None
        if shown is not None:
            positions = np.maximum(np.cumsum(shown, axis=1) - 1, 0)[:, -step.shape[1] :]
        logits = stream.step(step, positions, mask)
        step = np.argmax(to_numpy(logits)[:, -1].astype(np.float32), axis=-1)[:, None]
        chosen.append(step)
        if shown is not None:
            mask = np.ones_like(step)
            shown = np.concatenate([shown, mask], axis=1)
    return np.concatenate(chosen, axis=1)

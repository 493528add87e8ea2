"""Greedy text of a file, one prompt after the other, so that none needs padding."""

import numpy as np

from rope_export.arrays import to_numpy
from rope_export.parity.decoder.greedy import Greedy
from rope_export.sessions import Session


class RowGreedy(Greedy):
    """Each prompt is a batch of its own."""

    def generate(self, session: Session) -> None:
        rows = range(len(self.ids))
        texts = [self._text(session, self.ids[row, self.mask[row] == 1]) for row in rows]
        slots = max(map(len, texts))
        self.ids, self.mask = np.zeros((2, len(rows), slots), np.int64)
        for row, text in enumerate(texts):
            self.ids[row, slots - len(text) :] = text
            self.mask[row, slots - len(text) :] = 1
        self.walks = [self._walk(row) for row in rows]

    def _text(self, session: Session, prompt: np.ndarray) -> np.ndarray:
        stream, text, step = session.start(capacity=len(prompt) + self.tokens), prompt, prompt
        for _ in range(self.tokens):
            logits = to_numpy(stream.step(step[None].astype(np.int64)))
            step = np.argmax(logits[0, -1].astype(np.float32), keepdims=True)
            text = np.concatenate((text, step))
        return text

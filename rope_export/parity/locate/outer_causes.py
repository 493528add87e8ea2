"""What explains a wrong tensor around a decoder's layers: of embedding, norm, head or logits."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import ml_dtypes
import numpy as np
from torch import nn

from rope_export.parity.decoder.passage import last_new, to_float
from rope_export.parity.locate.diagnosis import Explanation, plain_explanations
from rope_export.parity.locate.outer_model import LOGITS, Outer, OuterModel
from rope_export.parity.locate.signatures.numbers import MANY, shown
from rope_export.parity.locate.stage import Seen, Stage, explains
from rope_export.parity.metrics import SCALED_MAX

BESIDE = 100
"""Rank of what a tensor's numbers tell by themselves, which says less than what is told here."""

FEW = 3
"""Tokens, or logits, that are told apart from all others."""

SAME = 0.05
"""Share of its error by which a row may differ from what explains it."""

CAPPED = 0.999
"""Share of the largest logit above which a softcap does nothing to be told."""

STEPS = 200
"""Halvings of an interval, more than float64 has bits."""


@dataclass(frozen=True, kw_only=True, eq=False)
class OuterSuspect:
    """A tensor around the layers that is wrong while everything before it is right.

    first: the tensor. before: the path of what was compared before it, if anything was. outer: what
    is right. model: its modules. ids (rows, sequence): the tokens of the call; new: which of them
    are no padding.
    """

    first: Seen
    before: str | None
    outer: Outer
    model: OuterModel
    ids: np.ndarray
    new: np.ndarray

    @property
    def stage(self) -> Stage:
        return self.first.stage

    @property
    def value(self) -> np.ndarray:
        return self.first.value

    @property
    def expected(self) -> np.ndarray:
        return self.first.stage.expected

    @cached_property
    def module(self) -> nn.Module | None:
        """That gives it."""
        return self.model.module(self.stage.key)

    def taken(self, name: str | None) -> np.ndarray | None:
        """What the module of a path gives, or with ".input" takes: of each row's last new token, if
        the wrong tensor is of that one alone."""
        if name is None:
            return None
        path = name.removesuffix(".input")
        true = self.outer.after.get(name)
        value = self.outer.inputs.get(path) if true is None else true.exact
        if value is None or value.shape[1] == self.expected.shape[1]:
            return value
        return last_new(value, self.new)

    def weight(self, module: nn.Module | None) -> np.ndarray | None:
        """Of a module, in float64."""
        weight = getattr(module, "weight", None)
        return to_float(weight) if isinstance(weight, nn.Parameter) else None

    def explained(self, other: np.ndarray) -> bool:
        """Whether the tensor is `other` but for rounding."""
        if other.shape != self.expected.shape:
            return False
        return explains(self.stage.errors(self.value, other), self.first.tolerances)

    def wrong(self, axis: int | None) -> np.ndarray:
        """Which tokens, or which features of `axis`, have an element outside of the tolerance."""
        unit = 1.0 if self.stage.units is None else self.stage.units
        off = np.abs(self.value - self.expected) / unit
        judged = np.broadcast_to(
            True if self.stage.judged is None else self.stage.judged, off.shape
        )
        size = np.max(np.abs(self.expected / unit), where=judged, initial=0.0)
        beyond = ~(off <= self.first.tolerances[SCALED_MAX] * size) & judged
        others = tuple(x for x in range(off.ndim) if x != axis)
        found: np.ndarray = beyond.any(axis=-1 if axis is None else others)
        return found


def outer_explanations(suspect: OuterSuspect, dtype: str) -> Iterator[Explanation]:
    """Everything that explains the tensor."""
    kinds: tuple[Callable[[OuterSuspect], Iterator[tuple[str, np.ndarray]]], ...] = (
        _embeddings, _norms, _heads, _after_head, _roundings,
    )  # fmt: skip
    with np.errstate(all="ignore"):  # what is wrong may not be finite
        for rank, kind in enumerate(kinds):
            for text, other in kind(suspect):
                if suspect.explained(other):
                    yield Explanation(rank=rank, text=text)
        yield from _of_few(suspect)
    for explanation in plain_explanations(suspect.first, dtype):
        yield Explanation(rank=BESIDE + explanation.rank, text=explanation.text)


def _embeddings(suspect: OuterSuspect) -> Iterator[tuple[str, np.ndarray]]:
    """Rows of other tokens."""
    table = _table(suspect)
    if table is None:
        return
    for text, by in {"after": 1, "before": -1}.items():
        rows = table[(suspect.ids + by) % len(table)]
        yield f"every token has the embedding of the token {text} it", rows


def _table(suspect: OuterSuspect) -> np.ndarray | None:
    """The embeddings as the wrong tensor should have them, if it is that of an embedding: its
    weights, times what the module multiplies them with."""
    weight = suspect.weight(suspect.module)
    shape = (*suspect.ids.shape, 0 if weight is None else weight.shape[-1])
    if weight is None or suspect.stage.key not in suspect.outer.before:
        return None
    if weight.ndim != 2 or suspect.expected.shape != shape or len(weight) <= suspect.ids.max():
        return None
    plain = weight[suspect.ids]
    size = float(np.sum(plain * plain))
    return weight * (float(np.sum(plain * suspect.expected)) / size if size else 1.0)


def _norms(suspect: OuterSuspect) -> Iterator[tuple[str, np.ndarray]]:
    x = suspect.outer.inputs.get(suspect.stage.key)
    if x is None or x.shape != suspect.expected.shape:
        return
    module = suspect.module
    eps = next((e for n in ("variance_epsilon", "eps") if (e := getattr(module, n, None))), 0.0)
    normed = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps)
    size = np.sum(normed**2, axis=(0, 1))
    by = np.sum(suspect.expected * normed, axis=(0, 1)) / np.where(size, size, 1.0)
    centred = x - np.mean(x, axis=-1, keepdims=True)
    layer = centred / np.sqrt(np.mean(centred**2, axis=-1, keepdims=True) + eps)
    yield "the norm is left out", x
    yield "the norm's weights are applied without the norm", x * by
    yield "the norm has no weights", normed
    yield "the norm has weights w in the place of 1 + w", normed * (by - 1)
    yield "the norm has weights 1 + w in the place of w", normed * (by + 1)
    yield "a layer norm in the place of an RMS norm", layer * by
    outside = x / (np.sqrt(np.mean(x * x, axis=-1, keepdims=True)) + eps)
    yield "epsilon is added outside of the root", outside * by


def _heads(suspect: OuterSuspect) -> Iterator[tuple[str, np.ndarray]]:
    """Logits of other tokens, and of other weights."""
    if not _has_logits(suspect):
        return
    for text, by in {"after": -1, "before": 1}.items():
        other = np.roll(suspect.expected, by, axis=-1)
        yield f"every token has the logit of the token {text} it", other
    embedding = suspect.weight(suspect.model.theirs.model.get_input_embeddings())
    head = suspect.weight(suspect.module)
    if embedding is None or head is None or embedding.shape != head.shape:
        return
    taken = suspect.taken(suspect.before)
    if taken is not None and not np.array_equal(embedding, head):
        yield "the head has the weights of the embedding", taken @ embedding.T
    unnormed = suspect.taken(f"{suspect.before}.input")
    if unnormed is not None:
        yield "the head takes what enters the norm before it", unnormed @ head.T


def _has_logits(suspect: OuterSuspect) -> bool:
    return "logit" in suspect.stage.axes


def _after_head(suspect: OuterSuspect) -> Iterator[tuple[str, np.ndarray]]:
    """What is made of logits: a scale, a softcap."""
    if not _has_logits(suspect):
        return
    taken = suspect.taken(suspect.before)
    if taken is not None and taken.shape == suspect.expected.shape:
        yield "what follows the head, a scale or a softcap of logits, is left out", taken
        cap = _softcap(taken, suspect.value)
        if cap is not None:
            yield f"another softcap of logits: {cap:.6g}", cap * np.tanh(taken / cap)
    cap = _softcap(suspect.expected, suspect.value)
    if cap is not None and suspect.stage.key != LOGITS:
        text = f"a softcap of logits that is not the model's: {cap:.6g}"
        yield text, cap * np.tanh(suspect.expected / cap)


def _softcap(x: np.ndarray, y: np.ndarray) -> float | None:
    """c for which c tanh(x / c) is y where x is largest, if there is one."""
    if not np.all(np.isfinite(y)):
        return None
    at = int(np.argmax(np.abs(x)))
    size, capped = abs(float(x.flat[at])), abs(float(y.flat[at]))
    if not 0 < capped < CAPPED * size:
        return None
    low, high = capped, 1e6 * size  # tanh is below 1, and below its argument
    for _ in range(STEPS):
        middle = (low + high) / 2
        if middle * np.tanh(size / middle) < capped:
            low = middle
        else:
            high = middle
    return low


def _roundings(suspect: OuterSuspect) -> Iterator[tuple[str, np.ndarray]]:
    """The tensor in fewer bits."""
    for name, kind in {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}.items():
        narrow = suspect.expected.astype(np.float32).astype(kind).astype(np.float64)
        yield f"it is rounded to {name}", narrow


def _of_few(suspect: OuterSuspect) -> Iterator[Explanation]:
    """A few tokens, or logits, are wrong and no others."""
    table, rank = _table(suspect), 50
    if table is not None:
        wrong = suspect.wrong(None)
        for token in _few(np.unique(suspect.ids[wrong]), np.unique(suspect.ids)):
            at = tuple(np.argwhere(wrong & (suspect.ids == token))[0])
            like = _like(suspect.value[at], table, token, np.unique(suspect.ids[wrong]))
            yield Explanation(rank=rank, text=f"the embedding of token {token} is wrong: {like}")
    elif _has_logits(suspect):
        wrong = suspect.wrong(suspect.expected.ndim - 1)
        every = np.arange(len(wrong))
        columns, true = (x.reshape(-1, x.shape[-1]).T for x in (suspect.value, suspect.expected))
        for logit in _few(every[wrong], every):
            like = _like(columns[logit], true, logit, every[wrong])
            yield Explanation(rank=rank, text=f"the logit of token {logit} is wrong: {like}")


def _few(wrong: np.ndarray, every: np.ndarray) -> list[int]:
    """The wrong ones, if they are few of several."""
    few = 0 < len(wrong) <= min(FEW, len(every) // 2)
    return [int(x) for x in wrong] if few else []


def _like(value: np.ndarray, table: np.ndarray, own: int, wrong: np.ndarray) -> str:
    """Which row of the table a value is, or what multiple of its own. wrong: rows that are."""
    true, size = table[own], float(table[own] @ table[own])
    if not np.any(value):
        return "it is 0"
    off = np.abs(value - true)
    near = SAME * np.linalg.norm(off)
    for other in wrong:
        if np.linalg.norm(table[other] - value) <= near:
            return f"it is that of token {other}"
    by = float(value @ true) / size if size else 0.0
    if np.linalg.norm(value - by * true) <= near:
        return f"it is {shown(by)} times what it should be"
    nearest = int(np.argmin(np.sum((table - value) ** 2, axis=-1)))
    if len(value) >= MANY and np.linalg.norm(table[nearest] - value) <= near:
        return f"it is that of token {nearest}"
    at = int(np.argmax(off))
    rest = np.linalg.norm(np.delete(off, at))
    return f"number {at} of it alone" if rest <= near else "many of its numbers"

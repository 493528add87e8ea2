"""What explains a wrong tensor: alternatives are computed in the reference, one by one, until the
tensor is one of them but for rounding."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from rope_export.discovery import modules_of
from rope_export.parity.locate.signatures.numbers import of_numbers
from rope_export.parity.locate.stage import SHAPE, Seen, explains
from rope_export.parity.locate.suspect import Maker, Signature, Suspect

LARGEST = {"float16": 65_504.0}

GROWING = 0.8
"""Correlation of the error with the position from which on one grows with the other."""

WHOLE = 0.99
"""Share of the squared error that counts as all of it."""

SHOWN = 2
"""Explanations that are told, of several that fit."""


@dataclass(frozen=True, kw_only=True, order=True)
class Explanation:
    """What explains a tensor. rank: of its kind, the lower the more it tells."""

    rank: int = 0
    text: str


def explanations(suspect: Suspect) -> Iterator[Explanation]:
    """Everything that explains the tensor, the most telling first."""
    if any(row.metric == SHAPE for row in suspect.first.rows):
        yield Explanation(text="it has another number of elements than it should have")
        return
    spec = suspect.layer.spec
    smallest = min(spec.softmax_scale, 1.0) if suspect.stage.key == "products" else 1.0
    overflow = _not_finite(suspect.first, spec.dtype, smallest)
    if overflow is not None:
        yield Explanation(text=overflow)
        return
    with np.errstate(all="ignore"):  # what is wrong may not be finite
        for rank, signature in signatures():
            for alternative in signature(suspect):
                if suspect.explained(alternative.value()):
                    yield Explanation(rank=rank + alternative.rank, text=alternative.text)


def signatures() -> list[tuple[int, Signature]]:
    """The `alternatives` of every file in `signatures` by their `RANK`."""
    modules = modules_of("rope_export.parity.locate.signatures")
    ranked = [(x.RANK, x.alternatives) for x in modules if hasattr(x, "alternatives")]
    return sorted(ranked, key=lambda x: x[0])


def plain_explanations(first: Seen, dtype: str) -> Iterator[Explanation]:
    """What explains a tensor of which no reference but its own values is at hand."""
    overflow = _not_finite(first, dtype, 1.0)
    if overflow is not None:
        yield Explanation(text=overflow)
        return
    limits = {row.metric: row.tolerance for row in first.rows}
    for alternative in of_numbers(first.stage, first.value):
        other = alternative.value()
        off = {} if other is None else first.stage.errors(first.value, other)
        if off and explains(off, limits):
            yield Explanation(rank=alternative.rank, text=alternative.text)


def sentence(
    first: Seen, maker: Maker | None, common: Sequence[Explanation], suspect: Suspect | None = None
) -> str:
    """The diagnosis of the first wrong tensor. maker: the node that makes it. common: what explains
    it in every case that was looked at."""
    if common:
        lowest = min(x.rank for x in common)
        texts = list(dict.fromkeys(x.text for x in common if x.rank == lowest))
        return f"It fits: {', or '.join(texts[:SHOWN])}."
    hints = ["Nothing that was tried explains it"]
    if suspect is not None and _grows(suspect):
        hints.append("the error grows with the position, as that of angles does")
    hints += _confined(first)
    if maker is not None:
        weights = f" with initializer {' and '.join(map(repr, maker.weights))}"
        hints.append(
            f"it is made by {maker.operator} of {' and '.join(map(repr, maker.inputs))}"
            f"{weights if maker.weights else ''}"
        )
    return f"{'; '.join(hints)}."


def _not_finite(first: Seen, dtype: str, smallest: float) -> str | None:
    """smallest: a factor that comes after a product that is larger."""
    stage = first.stage
    if np.all(np.isfinite(stage.part(first.value))):
        return None
    true = stage.part(stage.expected).astype(np.float64)
    largest = float(np.max(np.abs(true), initial=0.0)) / smallest
    if largest > LARGEST.get(dtype, np.inf):
        return f"{dtype} overflows: numbers here go beyond 65,504, its largest"
    return "a number that is not finite arises here, and none of the true ones is large"


def _confined(first: Seen) -> Iterator[str]:
    """Where the whole error is, if it is in one head, channel, token or row of several."""
    stage = first.stage
    off = np.abs(first.value.astype(np.float64) - stage.expected)
    if stage.judged is not None:
        off = np.where(np.broadcast_to(stage.judged, off.shape), off, 0.0)
    for at, (axis, size) in enumerate(zip(stage.axes, off.shape, strict=True)):
        share = np.sum(off**2, axis=tuple(x for x in range(off.ndim) if x != at))
        if size > 1 and np.max(share) > WHOLE * np.sum(share):
            yield f"all of it is in {axis} {int(np.argmax(share))}"


def _grows(suspect: Suspect) -> bool:
    """Whether the error of a token grows with the size of its position."""
    positions, stage = suspect.inputs.get("position_ids"), suspect.stage
    if positions is None or "sequence" not in stage.axes or stage.exact:
        return False
    off = np.abs(suspect.value - stage.expected)
    others = tuple(at for at, x in enumerate(stage.axes) if x not in ("batch", "sequence"))
    by_token = off.max(axis=others)
    first = positions if positions.ndim == 2 else positions[0]
    if by_token.shape != first.shape or by_token.size < 3 or np.ptp(np.abs(first)) == 0:
        return False
    return bool(np.corrcoef(by_token.ravel(), np.abs(first).ravel())[0, 1] > GROWING)

"""What explains a wrong tensor: alternatives are computed in the reference, one by one, until the
tensor is one of them but for rounding."""

from collections.abc import Iterator, Sequence

import numpy as np

from rope_export.discovery import modules_of
from rope_export.parity.locate.signatures.arithmetic import of_numbers
from rope_export.parity.locate.stage import SHAPE, Seen
from rope_export.parity.locate.suspect import Maker, Signature, Suspect

LARGEST = {"float16": 65_504.0}

GROWING = 0.8
"""Correlation of the error with the position from which on one grows with the other."""

SHOWN = 2
"""Explanations that are told, of several that fit."""


def explanations(suspect: Suspect) -> Iterator[str]:
    """Everything that explains the tensor, the most telling first."""
    if any(row.metric == SHAPE for row in suspect.first.rows):
        yield "it has another number of elements than it should have"
        return
    spec = suspect.layer.spec
    smallest = min(spec.softmax_scale, 1.0) if suspect.stage.key == "products" else 1.0
    overflow = _not_finite(suspect.first, spec.dtype, smallest)
    if overflow is not None:
        yield overflow
        return
    told: set[str] = set()
    with np.errstate(all="ignore"):  # what is wrong may not be finite
        for signature in signatures():
            for alternative in signature(suspect):
                if alternative.text not in told and suspect.explained(alternative.value()):
                    told.add(alternative.text)
                    yield alternative.text


def signatures() -> list[Signature]:
    """The `alternatives` of every file in `signatures`, in the order of their `rank`."""
    modules = list(modules_of("rope_export.parity.locate.signatures"))
    ranked = sorted((x for x in modules if hasattr(x, "alternatives")), key=lambda x: x.RANK)
    return [x.alternatives for x in ranked]


def plain_explanations(first: Seen, dtype: str) -> Iterator[str]:
    """What explains a tensor of which no reference but its own values is at hand."""
    overflow = _not_finite(first, dtype, 1.0)
    if overflow is not None:
        yield overflow
        return
    limits = {row.metric: row.tolerance for row in first.rows}
    for alternative in of_numbers(first.stage, first.value):
        other = alternative.value()
        off = {} if other is None else first.stage.errors(first.value, other)
        if off and all(error <= limits[metric] for metric, error in off.items()):
            yield alternative.text


def sentence(maker: Maker | None, common: Sequence[str], suspect: Suspect | None = None) -> str:
    """The diagnosis. maker: the node that makes the tensor. common: what explains it in every case
    that was looked at."""
    if common:
        return f"It fits: {', or '.join(common[:SHOWN])}."
    hints = ["Nothing that was tried explains it"]
    if suspect is not None and _grows(suspect):
        hints.append("the error grows with the position, as that of angles does")
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
    size = float(np.max(np.abs(true), initial=0.0)) / smallest
    if size > LARGEST.get(dtype, np.inf):
        return f"{dtype} overflows: the largest number here is {size:,.0f}, beyond 65,504"
    return "a number that is not finite arises here, and none of the true ones is large"


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

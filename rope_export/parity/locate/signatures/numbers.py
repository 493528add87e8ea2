"""What a tensor's numbers tell by themselves: factors and constants."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from rope_export.parity.locate.stage import Stage
from rope_export.parity.locate.suspect import Alternative, Suspect

RANK = 60

SAME = 1e-3
"""How far a factor may be from -1 to be one."""

MANY = 3
"""Numbers from which on what they have in common is no accident."""


def alternatives(suspect: Suspect) -> Iterator[Alternative]:
    if not suspect.stage.exact:
        yield from of_numbers(suspect.stage, suspect.value)


def of_numbers(stage: Stage, value: np.ndarray) -> Iterator[Alternative]:
    """What can be told of a tensor's numbers alone, the simplest first."""
    kinds = (_factor, _constant, _factors)
    for rank, kind in enumerate(kinds):
        for alternative in kind(stage, value):
            yield replace(alternative, rank=rank)


DIGITS = 6
"""Of a factor that is told, at most."""


def shown(by: float, digits: int = DIGITS) -> str:
    """A factor in so many digits; of one that is 1 in these how far it is from that."""
    text = f"{by:.{digits}g}"
    return f"1 {'+' if by > 1 else '-'} {abs(by - 1):.1e}" if text == "1" else text


def _digits(by: float, ours: np.ndarray, true: np.ndarray) -> int:
    """Those of a factor that rounding leaves it, by what is off beside it, so that it is the same
    in every call."""
    rest = float(np.sum((ours - by * true) ** 2) / np.sum(true**2))
    if not by or not rest:
        return DIGITS
    known = -np.log10(10 * np.sqrt(rest / len(true)) / abs(by))
    return int(np.clip(known, 1, DIGITS))


def _factor(stage: Stage, value: np.ndarray) -> Iterator[Alternative]:
    """The tensor is a multiple of what it should be."""
    ours, true = (stage.part(x).astype(np.float64) for x in (value, stage.expected))
    size = float(true @ true)
    if not size or not np.all(np.isfinite(ours)):
        return
    by = float(ours @ true) / size
    times = f"another scale: it is {shown(by, _digits(by, ours, true))} times what it should be"
    text = "another sign: it is negated" if abs(by + 1) < SAME else times
    yield Alternative(text=text, value=lambda: by * stage.expected)


def _factors(stage: Stage, value: np.ndarray) -> Iterator[Alternative]:
    """Every token, or every channel, is a multiple of what it should be."""
    if "sequence" not in stage.axes or "channel" not in stage.axes:
        return
    kinds = {
        "each token has another scale, as by another epsilon": ("channel",),
        "channels have other scales, as by other weights of a norm": ("batch", "sequence"),
    }
    for text, others in kinds.items():
        axes = tuple(at for at, x in enumerate(stage.axes) if x in others)
        if np.prod([stage.expected.shape[at] for at in axes]) >= MANY:
            size = np.sum(stage.expected**2, axis=axes, keepdims=True)
            by = np.sum(value * stage.expected, axis=axes, keepdims=True) / np.where(size, size, 1)
            yield Alternative(text=text, value=lambda x=by: x * stage.expected)  # type: ignore[misc]


def _constant(stage: Stage, value: np.ndarray) -> Iterator[Alternative]:
    """The same is added to every token."""
    if "sequence" not in stage.axes or stage.key in ("context", "heads", "o_proj"):
        return
    axes = tuple(at for at, x in enumerate(stage.axes) if x in ("batch", "sequence"))
    tokens = int(np.prod([stage.expected.shape[at] for at in axes]))
    if tokens < MANY:
        return
    added = np.mean(value - stage.expected, axis=axes, keepdims=True)
    yield Alternative(
        text="the same numbers are added to every token, or missing, as by a bias",
        value=lambda: stage.expected + added,
    )

"""Angles that are wrong: pairing, sine, precision, positions, frequencies."""

import dataclasses
from collections.abc import Callable, Iterator
from itertools import permutations
from typing import Any

import ml_dtypes
import numpy as np

from rope_export.parity.layer.counterfactuals.base import changed, with_rope
from rope_export.parity.layer.reference import ReferenceLayer
from rope_export.parity.locate.suspect import Alternative, Inputs, Suspect
from rope_export.rope.base import RopeSpec
from rope_export.rope.default import DefaultRope

RANK = 10

LAYOUTS = ("half_split", "interleaved", "permuted")
NARROW = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}

THETAS = (10_000.0, 100_000.0, 500_000.0, 1_000_000.0)
"""Bases that published models have."""

SCALES = (2.0, 4.0, 8.0, 16.0, 32.0)
"""Factors of linear scaling."""

Table = tuple[np.ndarray, np.ndarray]
Rounding = Callable[[np.ndarray], np.ndarray]


def alternatives(suspect: Suspect) -> Iterator[Alternative]:
    if suspect.layer.spec.rope is None:
        return
    yield from _tables(suspect)
    yield from _pairs(suspect, suspect.layer.spec.rope)
    yield from _positions(suspect)
    yield from _bases(suspect, suspect.layer.spec.rope)
    yield from _precisions(suspect)


def _tables(suspect: Suspect) -> Iterator[Alternative]:
    """cos and sin that are exchanged, negated or missing."""
    tables: dict[str, Callable[[Table], Table]] = {
        "sin has the other sign": lambda x: (x[0], -x[1]),
        "sin is missing (taken as 0)": lambda x: (x[0], 0 * x[1]),
        "sin is missing (taken as 1)": lambda x: (x[0], 0 * x[1] + 1),
        "cos and sin are exchanged": lambda x: (x[1], x[0]),
    }
    for text, change in tables.items():
        yield _of(suspect, text, _with_table(suspect.layer, change))


def _pairs(suspect: Suspect, rope: RopeSpec) -> Iterator[Alternative]:
    words = {
        "half_split": "halves of the head, as a half-split layout has them",
        "interleaved": "adjacent features, as an interleaved layout has them",
        "permuted": "adjacent features that are moved to halves",
    }
    for layout in LAYOUTS:
        if layout != rope.layout:
            text = f"wrong pairing: rotary pairs are {words[layout]}, and not {rope.layout}"
            yield _of(suspect, text, with_rope(suspect.layer, layout=layout))
    for order in permutations(range(rope.axes)) if rope.axes > 1 else ():
        axes = tuple(order[axis] for axis in rope.pair_axes)
        if axes != rope.pair_axes:
            text = f"axes of positions mixed up: {order}, not {(*range(rope.axes),)}"
            yield _of(suspect, text, with_rope(suspect.layer, pair_axes=axes))
    yield _of(suspect, "not rotated", changed(suspect.layer, rope=None))


def _positions(suspect: Suspect) -> Iterator[Alternative]:
    if "position_ids" not in suspect.inputs:
        return
    at = suspect.inputs["position_ids"]
    counted = np.broadcast_to(np.arange(at.shape[-1]), at.shape)
    others = {
        "positions one too large": at + 1,
        "positions one too small": at - 1,
        "positions counted anew in each call, without the past": counted,
        "positions of the first row for every row": np.broadcast_to(at[..., :1, :], at.shape),
        "absolute values of positions": np.abs(at),
        "positions clipped at 0": np.maximum(at, 0),
        "positions doubled": 2 * at,
        **{f"positions modulo {2**x:,}": at % 2**x for x in (11, 12, 13, 15, 16, 17)},
        **{f"positions clipped at {2**x - 1:,}": np.minimum(at, 2**x - 1) for x in range(11, 19)},
    }
    for text, positions in others.items():
        if not np.array_equal(positions, at):
            inputs: Inputs = {**suspect.inputs, "position_ids": positions}
            yield _of(suspect, text, suspect.layer, inputs)


def _bases(suspect: Suspect, rope: RopeSpec) -> Iterator[Alternative]:
    """Frequencies of another base or scaling."""
    plain = DefaultRope(
        rotary_dim=rope.rotary_dim,
        theta=rope.theta,
        layout=rope.layout,
        pair_axes=rope.pair_axes,
        clockwise=rope.clockwise,
    )
    if rope.rope_type != "default":
        text = f"frequencies without the scaling of {rope.rope_type}"
        yield _of(suspect, text, changed(suspect.layer, rope=plain))
    bases = [2 * rope.theta, rope.theta / 2, *THETAS, *_fitted(suspect)]
    for theta in dict.fromkeys(x for x in bases if x != rope.theta and 1 < x < np.inf):
        text = f"wrong base: theta={theta:g}, not {rope.theta:g}"
        yield _of(suspect, text, with_rope(suspect.layer, theta=theta))
        if rope.rope_type != "default":
            other = dataclasses.replace(plain, theta=theta)
            text = f"{text}, and no scaling of {rope.rope_type}"
            yield _of(suspect, text, changed(suspect.layer, rope=other))
    for factor in SCALES:
        text = f"frequencies scaled linearly by {factor:g}"
        yield _of(suspect, text, _rounded(suspect.layer, frequencies=_divided(factor)))


def _divided(factor: float) -> Rounding:
    return lambda x: x / np.float32(factor)


def _fitted(suspect: Suspect) -> Iterator[float]:
    """Bases that the angles from one token to the next, whose positions differ by one, fit."""
    cos, sin = suspect.seen.get("cos"), suspect.seen.get("sin")
    at = suspect.inputs.get("position_ids")
    if cos is None or sin is None or at is None or at.ndim != 2 or at.shape[1] < 2:
        return
    unit = cos.value.astype(np.float64) + 1j * sin.value
    steps = (unit[:, 1:] * unit[:, :-1].conj())[np.diff(at, axis=1) == 1]
    if not len(steps) or not np.all(np.isfinite(steps)):
        return
    frequency = np.abs(np.median(np.angle(steps), axis=0))
    pairs = np.arange(len(frequency))
    clear = frequency > 1e-4
    if np.sum(clear[1:]) < 1:
        return
    slope = np.median(-np.log(frequency[clear][1:]) / pairs[clear][1:])
    theta = float(np.exp(slope * len(frequency)))
    for digits in (1, 2, 3):
        yield float(f"{theta:.{digits - 1}e}")


def _precisions(suspect: Suspect) -> Iterator[Alternative]:
    for name, kind in NARROW.items():
        rounded = _rounding(kind)
        yield _of(suspect, f"angles are computed in {name}", _narrow(suspect.layer, rounded))
        frequencies = _rounded(suspect.layer, frequencies=rounded)
        yield _of(suspect, f"inv_freq is rounded to {name}", frequencies)
        if name != suspect.layer.spec.dtype:
            table = _with_table(suspect.layer, lambda x, to=rounded: (to(x[0]), to(x[1])))  # type: ignore[misc]
            yield _of(suspect, f"cos and sin are rounded to {name}", table)


def _rounding(kind: Any) -> Rounding:
    def to(x: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore", invalid="ignore"):
            return x.astype(np.float32).astype(kind).astype(x.dtype)

    return to


def _with_table(layer: ReferenceLayer, change: Callable[[Table], Table]) -> ReferenceLayer:
    class Changed(ReferenceLayer):
        def _cos_sin(self, x: np.ndarray, position_ids: np.ndarray | None) -> Table:
            return change(super()._cos_sin(x, position_ids))

    return Changed(layer.spec, layer.weights, layer.inv_freq)


def _rounded(layer: ReferenceLayer, frequencies: Rounding) -> ReferenceLayer:
    return ReferenceLayer(
        layer.spec, layer.weights, lambda length: frequencies(layer.inv_freq(length))
    )


def _narrow(layer: ReferenceLayer, to: Rounding) -> ReferenceLayer:
    """Positions, frequencies and their product rounded."""

    class Narrow(ReferenceLayer):
        def _angles(self, at: np.ndarray, inv_freq: np.ndarray) -> np.ndarray:
            return to(to(at) * to(inv_freq))

    return Narrow(layer.spec, layer.weights, layer.inv_freq)


def _of(
    suspect: Suspect, text: str, layer: ReferenceLayer, inputs: Inputs | None = None
) -> Alternative:
    return Alternative(text=text, value=lambda: suspect.of(layer, inputs))

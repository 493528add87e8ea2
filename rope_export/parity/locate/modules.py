"""Compares what a module of transformers' decoder gives with the same tensor of an artifact."""

from dataclasses import dataclass

import numpy as np
from torch import nn

from rope_export.exporter.taps import TapFacts
from rope_export.parity.locate.stage import Seen, Stage, compared
from rope_export.parity.locate.watch import units


@dataclass(frozen=True, kw_only=True, eq=False)
class ModuleValues:
    """What a module gives for the tokens of a call, (rows, sequence, ...).

    exact, eager: its values. squares, rough: as of a `Block`'s parts; squares are 0 where nothing
    is rounded.
    """

    exact: np.ndarray
    eager: np.ndarray
    squares: np.ndarray | None
    rough: np.ndarray | None


def modules_of(whole: nn.Module) -> dict[str, nn.Module]:
    """Every module inside of another, by its path."""
    return {name: module for name, module in whole.named_modules() if name}


def compared_module(
    key: str,
    name: str,
    true: ModuleValues,
    value: np.ndarray,
    source: TapFacts | None,
    *,
    judged: np.ndarray,
    dtype: str,
    runtime: str,
    features: str = "channel",
) -> Seen:
    """A tensor by the rule of every row.

    key, name: of the `Stage`. value: of the runtime, with as many elements. judged: which tokens
    are looked at, (rows, sequence). features: what the third axis is.
    """
    exact = true.exact
    squares, rough = true.squares, true.squares if true.rough is None else true.rough
    moved = squares is not None and not squares.any()  # of which every error is one
    unknown = squares is None or moved
    stage = Stage(
        key=key,
        name=name,
        axes=("batch", "sequence", features, *map(str, range(3, exact.ndim)))[: exact.ndim],
        expected=exact,
        squares=None if unknown else squares,
        rough=None if unknown else rough,
        judged=judged.reshape(*judged.shape, *[1] * (exact.ndim - 2)),
        roundings=1 if moved or not unknown else exact.shape[-1],
        units=_sizes(exact) if moved else None if rough is None else units(rough),
    )
    value = value.reshape(exact.shape).astype(np.float64)
    named = None if source is None or runtime == "eager" else source.value
    return compared(stage, dtype, runtime, value, true.eager, named)


def _sizes(exact: np.ndarray) -> np.ndarray:
    """The size of each token, in which its errors are measured where none rounds."""
    size = np.sqrt(np.mean(exact**2, axis=-1, keepdims=True)) + np.finfo(float).tiny
    return np.broadcast_to(size, exact.shape)

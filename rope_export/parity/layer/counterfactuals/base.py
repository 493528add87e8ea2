"""What a counterfactual is, and the ways to make one of a layer."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from rope_export.parity.layer.inv_freq import frequencies
from rope_export.parity.layer.reference import ReferenceLayer
from rope_export.spec import Feature

Inputs = Mapping[str, np.ndarray]
Search = Literal["plain", "large", "small", "far", "long"]


@dataclass(frozen=True, kw_only=True)
class Counterfactual:
    """A layer that is wrong in one thing.

    fault: what is wrong. layer: computes that. inputs: of a call, as that layer would take them.
    search: where to look for a call that shows it first. limit: slots that it takes, for "long", or
    a position, for "far".
    """

    fault: str
    layer: ReferenceLayer
    inputs: Callable[[Inputs], Inputs] = dict
    search: Search = "plain"
    limit: int = 0


Maker = Callable[[ReferenceLayer, Feature], Iterator[Counterfactual]]
COUNTERFACTUALS: dict[str, Maker] = {}


def counterfactuals_of(layer: ReferenceLayer, feature: Feature) -> Iterator[Counterfactual]:
    """Every counterfactual of one feature of the layer's spec.

    Raises: KeyError for a kind of feature that has none.
    """
    return COUNTERFACTUALS[feature.kind](layer, feature)


def of_kind(*kinds: str) -> Callable[[Maker], Maker]:
    """Registers a function as the maker of the counterfactuals of some kinds of feature."""

    def registered(make: Maker) -> Maker:
        COUNTERFACTUALS.update(dict.fromkeys(kinds, make))
        return make

    return registered


def changed(layer: ReferenceLayer, **spec: Any) -> ReferenceLayer:
    """The layer with other facts."""
    other = dataclasses.replace(layer.spec, **spec)
    return ReferenceLayer(other, layer.weights, frequencies(other))


def with_rope(layer: ReferenceLayer, **rope: Any) -> ReferenceLayer:
    """The layer with another rotation."""
    assert layer.spec.rope is not None
    return changed(layer, rope=dataclasses.replace(layer.spec.rope, **rope))


def weighing(layer: ReferenceLayer, **weights: np.ndarray) -> ReferenceLayer:
    """The layer with other weights; of names, with "__" for a point."""
    other = {name.replace("__", "."): value for name, value in weights.items()}
    return ReferenceLayer(layer.spec, {**layer.weights, **other}, layer.inv_freq)

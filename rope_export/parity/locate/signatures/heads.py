"""Heads, features and weights in the place of others."""

from collections.abc import Iterator
from itertools import combinations

import numpy as np

from rope_export.parity.layer.counterfactuals.base import weighing
from rope_export.parity.locate.suspect import Alternative, Suspect

RANK = 40

MOST = 512
"""Pairs of heads that are tried."""


def alternatives(suspect: Suspect) -> Iterator[Alternative]:
    yield from _heads(suspect)
    yield from _features(suspect)
    yield from _output_heads(suspect)
    yield from _other_weights(suspect)


def _by_head(suspect: Suspect) -> tuple[np.ndarray, np.ndarray] | None:
    """The value and what it should be, (heads, ...), of a tensor that has several heads."""
    spec, stage = suspect.layer.spec, suspect.stage
    pair = (suspect.value, stage.expected)
    if "head" in stage.axes and stage.expected.shape[1] > 1 and not stage.exact:
        return pair[0].swapaxes(0, 1), pair[1].swapaxes(0, 1)
    widths = {"q_proj": spec.head_dim, "q_b_proj": spec.head_dim, "k_proj": spec.head_dim}
    widths |= {"v_proj": spec.value_head_dim, "heads": spec.value_head_dim}
    width = widths.get(stage.key)
    if width is None or stage.expected.shape[-1] in (width, 0):
        return None
    shape = (*stage.expected.shape[:-1], -1, width)
    first, second = (np.moveaxis(x.reshape(shape), -2, 0) for x in pair)
    return first, second


def _heads(suspect: Suspect) -> Iterator[Alternative]:
    """Heads in another order: each of the tensor's is nearest to another one than its own."""
    found = _by_head(suspect)
    if found is None or not np.all(np.isfinite(found[0])):
        return
    ours, true = (x.reshape(len(x), -1).astype(np.float64) for x in found)
    distance = np.sum(ours**2, 1)[:, None] + np.sum(true**2, 1) - 2 * ours @ true.T
    order = np.argmin(distance, axis=1)
    if np.array_equal(order, np.arange(len(order))):
        return

    def moved() -> np.ndarray:
        other = found[1][order]
        if "head" in suspect.stage.axes:
            return other.swapaxes(0, 1)
        return np.moveaxis(other, 0, -2).reshape(suspect.stage.expected.shape)

    shown = ", ".join(map(str, order[:8])) + ("…" if len(order) > 8 else "")
    yield Alternative(text=f"head permutation: its heads are those of {shown}", value=moved)


def _features(suspect: Suspect) -> Iterator[Alternative]:
    """Features of each head laid out for the other pairing of a rotation."""
    found = _by_head(suspect)
    if found is None or suspect.stage.key[:1] not in ("q", "k"):
        return
    width = found[1].shape[-1]
    orders = {
        "halves": np.arange(width).reshape(2, -1).T.ravel(),
        "neighbours": np.arange(width).reshape(-1, 2).T.ravel(),
    }
    for name, order in orders.items() if width % 2 == 0 else ():

        def moved(order: np.ndarray = order) -> np.ndarray:
            other = found[1][..., order]
            if "head" in suspect.stage.axes:
                return other.swapaxes(0, 1)
            return np.moveaxis(other, 0, -2).reshape(suspect.stage.expected.shape)

        text = f"wrong pairing: the weight's rows are laid out for pairs that are {name}"
        yield Alternative(text=text, value=moved)


def _output_heads(suspect: Suspect) -> Iterator[Alternative]:
    """The output projection takes two heads in the place of each other."""
    layer = suspect.layer
    if suspect.stage.key != "o_proj":
        return
    weight, width = layer.weights["o_proj.weight"], layer.spec.value_head_dim
    for first, second in list(combinations(range(layer.spec.heads), 2))[:MOST]:
        order = np.arange(layer.spec.heads)
        order[[first, second]] = second, first
        columns = (order[:, None] * width + np.arange(width)).ravel()
        swapped = weight[:, columns]
        yield Alternative(
            text=f"head permutation: o_proj takes heads {first} and {second} for each other",
            value=lambda w=swapped: suspect.trace.heads @ w.T + layer.weights.get("o_proj.bias", 0),  # type: ignore[misc]
        )


def _other_weights(suspect: Suspect) -> Iterator[Alternative]:
    """A projection with another one's weight, or with its own the wrong way round."""
    own = f"{suspect.stage.key}.weight"
    weights = suspect.layer.weights
    if own not in weights:
        return
    for name, weight in weights.items():
        if name != own and weight.shape == weights[own].shape:
            other = weighing(suspect.layer, **{own.replace(".", "__"): weight})
            text = f"wrong weight: {own} is {name}"
            yield Alternative(text=text, value=lambda x=other: suspect.of(x))  # type: ignore[misc]
    if weights[own].shape[0] == weights[own].shape[1]:
        other = weighing(suspect.layer, **{own.replace(".", "__"): weights[own].T})
        text = f"wrong weight: {own} is transposed"
        yield Alternative(text=text, value=lambda x=other: suspect.of(x))  # type: ignore[misc]

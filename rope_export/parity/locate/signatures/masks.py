"""Slots that are seen and should not be, or the other way round, and caches that are misplaced."""

from collections.abc import Callable, Iterator

import numpy as np

from rope_export.interface import LENGTHS
from rope_export.parity.layer.counterfactuals.base import changed
from rope_export.parity.layer.reference import ReferenceLayer
from rope_export.parity.locate.suspect import Alternative, Inputs, Suspect

RANK = 30

Seen = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Of what is visible (B, S, T) and how far each slot lies after the token's own, what
is seen then."""


def alternatives(suspect: Suspect) -> Iterator[Alternative]:
    yield from _inputs(suspect)
    yield from _offsets(suspect)


def _inputs(suspect: Suspect) -> Iterator[Alternative]:
    """Masks and lengths that are read otherwise."""
    inputs, layer = suspect.inputs, suspect.layer
    others = {}
    if "attention_mask" in inputs:
        mask = inputs["attention_mask"]
        others["mask of the other sign: padding is seen, and tokens are not"] = (
            "attention_mask",
            1 - mask,
        )
        others["the mask is ignored: padding is seen"] = ("attention_mask", np.ones_like(mask))
        others["the mask is one slot off"] = ("attention_mask", np.roll(mask, 1, axis=1))
    if LENGTHS in inputs:
        used = inputs[LENGTHS]
        last = suspect.trace.keys.shape[2] - suspect.trace.x.shape[1]
        for text, value in {
            "lengths of the cache are ignored: entries are written from slot 0 on": 0 * used,
            "entries are written one slot further": np.minimum(used + 1, last),
            "entries are written one slot before": np.maximum(used - 1, 0),
            "every row is taken to be as long as the longest": 0 * used + used.max(initial=0),
            "every row is taken to be as long as the first": 0 * used + used[0],
            "lengths of the rows are in the reverse order": used[::-1],
        }.items():
            others[f"cache misplacement: {text}"] = LENGTHS, value
    for text, (name, value) in others.items():
        if not np.array_equal(value, inputs[name]):
            changed_inputs = {**inputs, name: value}
            yield Alternative(text=text, value=lambda x=changed_inputs: suspect.of(layer, x))  # type: ignore[misc]


def _offsets(suspect: Suspect) -> Iterator[Alternative]:
    spec = suspect.layer.spec
    shapes: dict[str, Seen] = {
        "causal offset: a token does not see its own slot": lambda seen, ahead: seen & (ahead != 0),
        "every slot is seen": lambda seen, ahead: np.ones_like(seen),
        "mask of the other sign: what is seen and what is hidden are exchanged": (
            lambda seen, ahead: ~seen
        ),
    }
    if spec.causal:
        shapes["causal offset: one later slot is seen"] = _one_later(suspect)
        shapes["causality is counted from the first slot, as if nothing was cached"] = (
            lambda seen, ahead: (
                seen & (np.arange(seen.shape[2]) <= np.arange(seen.shape[1])[:, None])
            )
        )
    for text, shape in shapes.items():
        yield _of(suspect, text, _seeing(suspect.layer, shape))
    if spec.chunk is not None:
        yield _of(
            suspect,
            "chunks are counted from slot 0, and not from the first token",
            _from_0(suspect),
        )


def _one_later(suspect: Suspect) -> Seen:
    mask = suspect.inputs.get("attention_mask")

    def seen(visible: np.ndarray, ahead: np.ndarray) -> np.ndarray:
        later = np.broadcast_to(ahead == 1, visible.shape)
        return visible | (later if mask is None else later & (mask == 1)[:, None, :])

    return seen


def _from_0(suspect: Suspect) -> ReferenceLayer:
    layer, chunk = suspect.layer, suspect.layer.spec.chunk or 1
    unchunked = changed(layer, chunk=None)

    class FromSlot0(ReferenceLayer):
        def _visible(
            self, inputs: Inputs, starts: np.ndarray, sequence: int, total: int
        ) -> np.ndarray:
            seen = unchunked._visible(inputs, starts, sequence, total)
            own = starts[:, None, None] + np.arange(sequence)[:, None]
            return seen & (np.arange(total) // chunk == own // chunk)

    return FromSlot0(layer.spec, layer.weights, layer.inv_freq)


def _seeing(layer: ReferenceLayer, shape: Seen) -> ReferenceLayer:
    class Seeing(ReferenceLayer):
        def _visible(
            self, inputs: Inputs, starts: np.ndarray, sequence: int, total: int
        ) -> np.ndarray:
            seen = super()._visible(inputs, starts, sequence, total)
            own = starts[:, None, None] + np.arange(sequence)[:, None]
            return shape(seen, np.arange(total) - own)

    return Seeing(layer.spec, layer.weights, layer.inv_freq)


def _of(suspect: Suspect, text: str, layer: ReferenceLayer) -> Alternative:
    return Alternative(text=text, value=lambda: suspect.of(layer))

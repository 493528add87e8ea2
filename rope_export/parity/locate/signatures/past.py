"""A past that is another one than the cache that was handed in, and entries at its wrong end."""

from collections.abc import Iterator

import numpy as np

from rope_export.parity.locate.suspect import Alternative, Inputs, Suspect

RANK = 35

CACHES = (
    ("past_key", "past_value"),
    ("key_cache", "value_cache"),
    ("past_latent", "past_key_rope"),
    ("latent_cache", "key_rope_cache"),
)
"""Inputs that hold what was cached before the call."""


def alternatives(suspect: Suspect) -> Iterator[Alternative]:
    if suspect.stage.key != "cache":
        return
    inputs = suspect.inputs
    for names in CACHES:
        if inputs.keys() >= set(names):
            for text, other in _others(inputs, *names):
                changed = {**inputs, **other}
                yield Alternative(
                    text=f"cache misplacement: {text}",
                    value=lambda x=changed: suspect.of(suspect.layer, x),  # type: ignore[misc]
                )
    yield from _order(suspect)


def _others(inputs: Inputs, first: str, second: str) -> Iterator[tuple[str, Inputs]]:
    one, two = inputs[first], inputs[second]
    if one.shape == two.shape:
        yield "the two caches are exchanged", {first: two, second: one}
    for name in (first, second):
        past = inputs[name]
        yield f"{name} is negated", {name: -past}
        yield f"{name} is 0", {name: 0 * past}
        yield f"slots of {name} are in the reverse order", {name: past[..., ::-1, :]}
        yield f"{name} is one slot off", {name: np.roll(past, 1, axis=-2)}
        if len(past) > 1:
            yield f"rows of {name} are in the reverse order", {name: past[::-1]}
        if past.ndim > 3 and past.shape[1] > 1:
            yield f"heads of {name} are in the reverse order", {name: past[:, ::-1]}


def _order(suspect: Suspect) -> Iterator[Alternative]:
    """New entries before the past, of a cache that grows."""
    starts, expected = suspect.trace.starts, suspect.stage.expected
    past, new = int(starts[0]), suspect.trace.x.shape[1]
    if not past or np.any(starts != past) or expected.shape[-2] != past + new:
        return
    parts = expected[..., past:, :], expected[..., :past, :]
    yield Alternative(
        text="cache misplacement: the new entries come before the past",
        value=lambda: np.concatenate(parts, axis=-2),
    )

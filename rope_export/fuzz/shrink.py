"""Smaller examples of a counterexample: whole parts of it made plain first, then fact by fact.

Hypothesis shrinks choices, of which nearly every one makes another layer that has to be exported;
these candidates are few, and those that need no new export come first.
"""

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any

from rope_export.errors import InputError
from rope_export.fuzz.example import Example, Numbers
from rope_export.parity.cases import SPARE
from rope_export.rope.base import RopeSpec
from rope_export.rope.default import DefaultRope
from rope_export.spec import AttentionSpec

SIZES = ("hidden_size", "kv_heads", "head_dim", "heads", "rope", "dtype")
"""Fields of a spec that are not features: they get smaller, and never go."""

WIDTHS = (2, 4, 8, 16)
PLAIN = Numbers()


def shrunk(example: Example, fails: Callable[[Example], bool], tries: int) -> Example:
    """The smallest example that fails among those that are tried, one step after the other.

    fails: whether an example does. tries: how many are compared at most.
    """
    known = {example.command}
    while True:
        for candidate in smaller(example):
            if candidate.command in known:
                continue
            if tries <= 0:
                return example
            known.add(candidate.command)
            tries -= 1
            if fails(candidate):
                example = candidate
                break
        else:
            return example


def smaller(example: Example) -> Iterator[Example]:
    """Examples with something less, each of which can be exported as far as its spec tells."""
    for change in (_numbers, _calls, _layers):
        yield from change(example)


def _numbers(example: Example) -> Iterator[Example]:
    """The same layer, with plain numbers."""
    yield replace(example, weights={}, hidden_states=PLAIN, seed=0)
    for name in example.weights:
        rest = {key: value for key, value in example.weights.items() if key != name}
        yield replace(example, weights=rest)
        yield replace(example, weights={**rest, name: replace(example.weights[name], channel=None)})
    yield replace(example, hidden_states=PLAIN)
    yield replace(example, seed=0)


def _calls(example: Example) -> Iterator[Example]:
    """The same layer, called with less."""
    (case, *_) = example.cases
    for facts in (
        {"batch": 1, "sequence": 1, "past": 0, "lengths": None, "padding": None, "spare": SPARE},
        {"batch": 1, "lengths": None},
        {"past": 0, "lengths": None},
        {"lengths": None},
        {"sequence": 1},
        {"padding": None},
        {"spare": SPARE},
        {"start": 0},
        {"start": case.start and 1},
        {"sequence": 2},
        {"past": 1, "lengths": None},
        {"sequence": case.sequence // 2},
        {"past": case.past // 2, "lengths": None},
        {"sequence": case.sequence - 1},
        {"past": max(0, case.past - 1), "lengths": None},
    ):
        changed = replace(case, **facts)
        longer = changed.sequence > case.sequence or changed.past > case.past
        if changed != case and changed.sequence > 0 and not longer:
            yield replace(example, cases=(changed,))


def _layers(example: Example) -> Iterator[Example]:
    """Another layer, another form of it."""
    (case, *_) = example.cases
    if case.padding is None and example.padding:
        yield replace(example, padding=False)
    for spec in _specs(example.spec):
        weights = {k: v for k, v in example.weights.items() if k in spec.weight_shapes}
        yield replace(example, spec=spec, weights=weights)
    if example.cache != "none" and case.past == 0:
        yield replace(example, cache="none", cases=(replace(case, spare=SPARE),))


def _specs(spec: AttentionSpec) -> Iterator[AttentionSpec]:
    """Smaller specs: without any feature, of one head, without one feature, narrower."""
    features = [x for x in fields(spec) if x.name not in SIZES]
    set_ = [x for x in features if getattr(spec, x.name) != x.default]
    one: dict[str, Any] = {"heads": 1, "kv_heads": 1}
    plain = {x.name: x.default for x in set_ if x.name != "latent"}
    rope = spec.rope
    default = None if rope is None else DefaultRope(rotary_dim=rope.rotary_dim)
    changes: list[dict[str, Any]] = [plain | one | {"rope": default, "hidden_size": 1}]
    changes += [plain | one | {"hidden_size": 1}, plain, one]
    changes += [{x.name: x.default} for x in set_]
    changes += [{"rope": x} for x in (_ropes(rope) if rope is not None else ())]
    changes += [{"hidden_size": x} for x in (1, spec.hidden_size // 2) if x > 0]
    changes += [{"heads": spec.kv_heads}, {"dtype": "float32"}]
    changes += [_narrower(spec, x) for x in WIDTHS if x < spec.head_dim]
    for change in changes:
        try:
            changed = replace(spec, **change)
        except InputError:  # features that go together
            continue
        if changed != spec:
            yield changed


def _ropes(rope: RopeSpec) -> Iterator[RopeSpec]:
    """Plainer rotations of as many features."""
    common = {x.name: getattr(rope, x.name) for x in fields(RopeSpec)}
    if type(rope) is not DefaultRope:
        yield DefaultRope(**common)
    plain: dict[str, Any] = {
        "theta": 10_000.0,
        "layout": "half_split",
        "pair_axes": (),
        "clockwise": False,
    }
    for name, value in plain.items():
        if common[name] != value:
            yield replace(rope, **{name: value})


def _narrower(spec: AttentionSpec, width: int) -> dict[str, Any]:
    """Heads of so many features, rotated by the plain variant, of its layout."""
    rope = spec.rope
    if rope is None or spec.latent is not None:
        return {"head_dim": width}
    facts: dict[str, Any] = {
        "layout": rope.layout,
        "clockwise": rope.clockwise,
        "theta": rope.theta,
    }
    rotary = min(rope.rotary_dim, width)
    return {"head_dim": width, "rope": DefaultRope(rotary_dim=rotary, **facts)}

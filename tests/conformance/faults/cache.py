"""Faults in how a cache is handled, each with the layer that it is planted in."""

from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from rope_export.attention import operators
from rope_export.exporter.taps import taps_of
from tests.conformance.faults.planting import Edit, Fault, both, inserted

ALLOWED = operators.allowed_slots
MASK = ("mask", "probabilities", "context")
LOWEST = -(2**62)

IN_OPERATOR = "its operator of attention appends to the cache itself"
BY_SLOT = "its operator of attention counts the slots itself"


def reversed_on(name: str, axis: int) -> Edit:
    """A cache, or its lengths, in the reverse order of an axis."""
    starts, ends, axes, steps = ([x] for x in (-1, LOWEST, axis, -1))
    constants = (np.array(x, np.int64) for x in (starts, ends, axes, steps))
    return inserted(name, "Slice", *constants)


def exchanged(first: str, second: str) -> Edit:
    """Who takes one input takes the other."""

    def edit(model: ir.Model) -> None:
        values = {x.name: x for x in model.graph.inputs}
        one, other = values[first], values[second]
        uses = {one: list(one.uses()), other: list(other.uses())}
        for value, taken in ((one, other), (other, one)):
            for use in uses[value]:
                use.node.replace_input_with(use.idx, taken)

    return edit


def cached_before_rotation(model: ir.Model) -> None:
    """The cache that is handed out has keys as they are before the rotation."""
    graph = model.graph
    values = {x.name: x for node in graph for x in node.outputs}
    (past,) = (x for x in graph.inputs if x.name == "past_key")
    plain = values[taps_of(model)["k"].value]
    at = next(at for at, x in enumerate(graph.outputs) if x.name == "present_key")
    sound = graph.outputs[at]
    node = ir.node("Concat", [past, plain], {"axis": -2})
    wrong = node.outputs[0]
    sound.name, wrong.name = "present_key.sound", "present_key"
    wrong.type, wrong.shape = sound.type, sound.shape
    graph.append(node)
    graph.outputs[at] = wrong


def prepended(past: Tensor | None, new: Tensor) -> Tensor:
    return new if past is None else torch.cat((new, past), dim=-2)


def one_slot_late(s: Any, t: Any, mask: Any, spec: Any, device: Any, lengths: Any = None) -> Tensor:
    """Every token sees as the one after it."""
    return ALLOWED(s, t, mask, spec, device, lengths + 1)


def cache(name: str, first: tuple[str, ...], **how: Any) -> Fault:
    return Fault(name=name, first=first, kind="cache", **how)


def lengths(operator: str, constant: int) -> Any:
    return inserted("cache_lengths", operator, np.array([constant]))


FAULTS: list[tuple[str, Fault]] = [
    ("plain", cache("past keys negated", ("present_key",), edit=inserted("past_key", "Neg"))),
    (
        "plain",
        cache("past of another row", ("present_value",), edit=reversed_on("past_value", 0)),
    ),
    (
        "plain",
        cache(
            "past in the reverse order",
            ("present_key",),
            edit=both(reversed_on("past_key", 2), reversed_on("past_value", 2)),
        ),
    ),
    (
        "plain",
        cache(
            "keys and values exchanged",
            ("present_key",),
            edit=exchanged("past_key", "past_value"),
        ),
    ),
    (
        "plain",
        cache(
            "new tokens before the past",
            ("present_key",),
            patches=[(operators, "append", prepended)],
            lowerings=("portable", "tensorrt"),
            why=IN_OPERATOR,
        ),
    ),
    (
        "plain",
        cache(
            "keys cached before the rotation",
            ("present_key",),
            edit=cached_before_rotation,
            lowerings=("portable", "standard", "tensorrt"),
            why="heads of its keys are apart only in its operator of attention",
        ),
    ),
    (
        "plain, fixed",
        cache("entries written one slot further", ("key_cache_out",), edit=lengths("Add", 1)),
    ),
    ("plain, fixed", cache("lengths ignored", ("key_cache_out",), edit=lengths("Mul", 0))),
    (
        "plain, fixed",
        cache("lengths of another row", ("key_cache_out",), edit=reversed_on("cache_lengths", 0)),
    ),
    (
        "plain, fixed",
        cache("an empty cache filled from slot 1", ("key_cache_out",), edit=lengths("Max", 1)),
    ),
    (
        "plain, fixed",
        cache("cached values negated", ("value_cache_out",), edit=inserted("value_cache", "Neg")),
    ),
    (
        "window 8, fixed",
        cache(
            "one slot beyond its own seen",
            MASK,
            patches=[(operators, "allowed_slots", one_slot_late)],
            lowerings=("standard", "tensorrt"),
            why=BY_SLOT,
        ),
    ),
]

"""Tensors around a decoder's layers that can be looked at: of its embedding, last norm, head."""

from collections.abc import Mapping

import onnx_ir as ir

from rope_export.attention.operators import Operators
from rope_export.decoder.body import AROUND, look_at
from rope_export.decoder.skeleton import Skeleton
from rope_export.exporter.taps import TapFacts, taps_of

Values = Mapping[str, tuple[ir.Value, str]]
"""By the path of a module what it gives in the graph, and its axes."""


def look_around(skeleton: Skeleton, layers: str, operators: Operators) -> None:
    """Has what the modules around the layers give be looked at, by their paths in the model.

    layers: path of the list of layers.
    """
    inside = (f"{layers}.", f"{skeleton.head_path}.")
    for name, module in skeleton.model.named_modules():
        if name and not name.startswith(inside):
            look_at(module, name, operators)


def values_around(model: ir.Model) -> Values:
    """The values that can be looked at in the model around its layers, whatever they are called
    once the layers are in it."""
    values = {str(value.name): value for node in model.graph for value in node.outputs}
    around = {}
    for tensor, facts in taps_of(model).items():
        value = values.get(facts.value)
        if value is not None:
            value.name = facts.value.replace(f"/{AROUND}", "/")
            around[tensor.removeprefix(AROUND)] = value, facts.axes
    return around


def taps_around(values: Values) -> dict[str, TapFacts]:
    """Where they are by now."""
    return {
        tensor: TapFacts(value=str(value.name), axes=axes)
        for tensor, (value, axes) in values.items()
    }

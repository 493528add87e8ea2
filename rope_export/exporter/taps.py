"""Tensors on the way that a model names, so that a verdict can look at them one by one.

While a layer is traced, its lowering puts a node behind each of them (`Lowering.tap`), which is
taken out again before anything is optimized: the graph is the same as without. What stays is a name
for the value, which optimizations hand on, and in the model's metadata what it is.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain, count

import onnx_ir as ir

from rope_export.lowerings.base import TAP

KEY = "rope_export.taps"
"""The entry of the model's metadata: by the tensor's name, the ONNX value and its axes."""

PLAIN = {"Reshape", "Identity"}
"""Operators whose result is their first input in the same order of numbers."""


@dataclass(frozen=True, kw_only=True)
class TapFacts:
    """Where a tensor is in a model. value: name of the ONNX value. axes: what lies in it, in this
    order, whatever its shape."""

    value: str
    axes: str


def named(model: ir.Model, prefix: str) -> None:
    """Takes the nodes of taps out of a traced model, and names their values `prefix`/tensor, with a
    number where a tensor is shown in several places; what is kept is the last of them.

    What they are is kept in the model's `meta`, and written by `describe_taps`.
    """
    taps: dict[str, TapFacts] = {}
    taken: set[str] = set()
    domain, _, operator = TAP.partition("::")
    for node in [x for x in model.graph if (x.domain, x.op_type) == (domain, operator)]:
        source, output = node.inputs[0], node.outputs[0]
        assert source is not None
        if output.is_graph_output() and not source.is_graph_output():
            source.name = output.name
        ir.convenience.replace_all_uses_with(output, source, replace_graph_outputs=True)
        tensor, axes = (node.attributes[x].as_string() for x in ("name", "axes"))
        model.graph.remove(node, safe=True)
        value = _named(source, f"{prefix}/{tensor}", taken)
        if value is not None:
            taken.add(value)
            taps[tensor] = TapFacts(value=value, axes=axes)
    model.opset_imports.pop(domain, None)
    model.meta[KEY] = taps


def _named(value: ir.Value, name: str, taken: set[str]) -> str | None:
    """The name of the value that has the numbers of `value`: `name`, unless it has one that must
    stay; none where it is an input or a weight. taken: names that others have."""
    while not value.is_graph_output():
        node = value.producer()
        if node is None or node.op_type not in PLAIN or node.inputs[0] is None:
            break
        value = node.inputs[0]
    if value.producer() is None:
        return None
    if not value.is_graph_output() and value.name not in taken:
        numbered = chain((name,), (f"{name}_{n}" for n in count(2)))
        value.name = next(x for x in numbered if x not in taken)
    return value.name


def taps_of(model: ir.Model) -> Mapping[str, TapFacts]:
    """The taps that `named` found in a model, by tensor."""
    taps: Mapping[str, TapFacts] = model.meta.get(KEY, {})
    return taps


def describe_taps(model: ir.Model, taps: Mapping[str, TapFacts]) -> None:
    """Writes into the model's metadata those taps whose values it still has, in a branch or not."""
    every = ir.traversal.RecursiveGraphIterator(model.graph)
    there = {output.name for node in every for output in node.outputs}
    kept = {
        tensor: [facts.value, facts.axes] for tensor, facts in taps.items() if facts.value in there
    }
    model.metadata_props[KEY] = json.dumps(kept, separators=(",", ":"))

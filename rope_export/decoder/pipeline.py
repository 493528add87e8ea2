"""From a source to a decoder's ONNX model, read in order."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from torch import nn

from rope_export.arrays import numpy_dtype
from rope_export.attention.layer import RotaryAttention
from rope_export.decoder.body import Body
from rope_export.decoder.model import CausalLM
from rope_export.decoder.modules import lower_modules
from rope_export.decoder.shared import LAST, Shared, parts_of
from rope_export.decoder.skeleton import Skeleton
from rope_export.decoder.stamping import Stamp, function_of, merged_before, stamped
from rope_export.exporter.translation import cleaned, traced
from rope_export.interface import CachePair, Interface, TensorType
from rope_export.lowerings import Lowering
from rope_export.spec import AttentionSpec


@dataclass
class Graph:
    """A decoder's ONNX model without its weights.

    weights: for each initializer, the parameter of transformers' model or (layer, name of the
    attention's tensor), and whether it is transposed.
    """

    model: ir.Model
    weights: dict[str, Any]


def decoder_graph(
    lm: CausalLM,
    specs: list[AttentionSpec],
    lowering: Lowering,
    interface: Interface,
    opset: int,
    *,
    last: bool,
) -> ir.Model:
    """Traces skeleton, shared parts and each distinct body once, and stamps them together."""
    fixed = interface.cache == "fixed"
    skeleton = Skeleton(lm)
    lower_modules(skeleton.model, lowering)
    dtype = specs[0].dtype
    ids = interface.input("input_ids"), interface.input("position_ids")
    index = [TensorType(name=LAST, dtype="int64", shape=("batch",))] if last else []
    outer = cleaned(traced(skeleton, [*ids, *index], ["logits"], opset), skeleton)
    pairs = _pairs(interface)
    kinds = _kinds(skeleton, lm, specs)
    attentions = {first: _attention(specs[first], lowering) for first in sorted(set(kinds))}
    shared = Shared(list(attentions.values()), fixed=fixed, last=last)
    front = _shared_graph(shared, interface, pairs, opset)
    bodies, stamps = {}, {}
    for first, attention in attentions.items():
        bodies[f"layer{first}"] = _body(
            skeleton, lm, first, attention, shared, interface, pairs[first], lowering, opset
        )
    for at, first in enumerate(kinds):
        parts = parts_of(attentions[first], shared.parts)
        key, value = pairs[at]
        lengths = ["cache_lengths"] if fixed else []
        path = f"{lm.layers_path}.{at}."
        stamps[at] = Stamp(
            body=f"layer{first}",
            inputs=[key.input, value.input, *lengths, *(part.tensor.name for part in parts)],
            outputs=[key.output, value.output],
            weights={
                name: path + name.removeprefix("layer.").replace(
                    f"{lm.attentions[first]}.attention.", f"{lm.attentions[at]}."
                )
                for name in bodies[f"layer{first}"][1]
            },
        )
    return _assembled(outer, front, bodies, stamps, interface, shared)


def _kinds(skeleton: Skeleton, lm: CausalLM, specs: list[AttentionSpec]) -> list[int]:
    """For each layer the first one that its body also serves."""
    facts = [
        (
            specs[at],
            lm.attentions[at],
            type(layer),
            skeleton.nodes[at].extras,
            {name: tuple(x.shape) for name, x in layer.named_parameters()},
            _settings(layer),
        )
        for at, layer in enumerate(skeleton.layers)
    ]
    return [facts.index(fact) for fact in facts]


def _settings(layer: nn.Module) -> list[tuple[str, str, Any]]:
    """The plain attributes of a layer's modules, by which two of one class may differ."""
    return [
        (name, key, value)
        for name, module in layer.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, str | int | float | bool | None)
        and key not in ("layer_idx", "layer_id", "layer_number", "training")
    ]


def _attention(spec: AttentionSpec, lowering: Lowering) -> RotaryAttention:
    attention = RotaryAttention(spec).eval().requires_grad_(False)
    lower_modules(attention, lowering)
    attention.operators = lowering
    return attention


def _pairs(interface: Interface) -> dict[int, tuple[CachePair, CachePair]]:
    """Each layer's caches of keys and values."""
    by_layer: dict[int, list[CachePair]] = {}
    for pair in interface.caches:
        by_layer.setdefault(int(pair.input.split(".")[1]), []).append(pair)
    return {at: (pairs[0], pairs[1]) for at, pairs in by_layer.items()}


def _shared_graph(
    shared: Shared,
    interface: Interface,
    pairs: Mapping[int, tuple[CachePair, CachePair]],
    opset: int,
) -> ir.Model:
    past = interface.input(pairs[min(pairs)][0].input)
    names = ["attention_mask", "position_ids", past.name]
    names += [] if interface.lengths is None else [interface.lengths]
    inputs = [interface.input(name) for name in names]
    return cleaned(traced(shared, inputs, shared.outputs, opset), shared)


def _body(
    skeleton: Skeleton,
    lm: CausalLM,
    at: int,
    attention: RotaryAttention,
    shared: Shared,
    interface: Interface,
    pair: tuple[CachePair, CachePair],
    lowering: Lowering,
    opset: int,
) -> tuple[ir.Function, list[str]]:
    node, layer = skeleton.nodes[at], skeleton.layers[at]
    lower_modules(layer, lowering, beside=lm.attentions[at])
    parts = parts_of(attention, shared.parts)
    body = Body(
        layer,
        lm.attentions[at],
        attention,
        fixed=interface.lengths is not None,
        parts=parts,
        arguments=node.arguments,
        extras=node.extras,
    )
    hidden = TensorType(
        name="hidden_states",
        dtype=attention.spec.dtype,
        shape=("batch", "sequence", attention.spec.hidden_size),
    )
    inputs = [hidden, *(interface.input(x.input) for x in pair)]
    inputs += [] if interface.lengths is None else [interface.input(interface.lengths)]
    inputs += [*(part.tensor for part in parts), *node.extras]
    outputs = ["hidden_states_out", "present_key", "present_value"]
    model = cleaned(traced(body, inputs, outputs, opset), body)
    return function_of(model, f"layer{at}", body.state_dict().keys())


def _assembled(
    outer: ir.Model,
    front: ir.Model,
    bodies: Mapping[str, tuple[ir.Function, list[str]]],
    stamps: Mapping[int, Stamp],
    interface: Interface,
    shared: Shared,
) -> ir.Model:
    graph = outer.graph
    inputs = {str(value.name): value for value in graph.inputs}
    last = inputs.pop(LAST, None)
    for tensor in interface.inputs:
        if tensor.name not in inputs:
            dtype = ir.DataType.from_numpy(numpy_dtype(tensor.dtype))
            inputs[tensor.name] = ir.Value(name=tensor.name, type=ir.TensorType(dtype))
        inputs[tensor.name].shape = ir.Shape(tensor.shape)
    graph.inputs.clear()
    graph.inputs.extend(inputs[tensor.name] for tensor in interface.inputs)
    values = merged_before(outer, front, inputs)
    if last is not None:
        ir.convenience.replace_all_uses_with(last, values[LAST])
    stamped(outer, bodies, [stamps[at] for at in sorted(stamps)], {**inputs, **values})
    return outer

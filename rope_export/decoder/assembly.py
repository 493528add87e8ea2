"""Puts a decoder's parts together in one graph: what is around the layers, what they share, and the
layers themselves, with the inputs and outputs of an interface."""

from collections.abc import Sequence

import onnx_ir as ir

from rope_export.arrays import numpy_dtype
from rope_export.decoder.around import taps_around, values_around
from rope_export.decoder.shared import LAST, NAN, PLAIN, SLOTS
from rope_export.decoder.stamping import Stamp, merged_before, stamped
from rope_export.exporter.taps import KEY as TAPS
from rope_export.interface import Interface


def assembled(
    outer: ir.Model, front: ir.Model, stamps: Sequence[Stamp], interface: Interface
) -> ir.Model:
    """outer: the model around its layers, which becomes the whole one. front: what they share."""
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
    taken = {tensor.name for tensor in interface.inputs}
    graph.inputs.extend(value for name, value in inputs.items() if name not in taken)
    for name in interface.optional:
        _default(graph, inputs[name])
    values = merged_before(outer, front, inputs)
    if last is not None:
        ir.convenience.replace_all_uses_with(last, values[LAST])
    later = [values[name] for name in (PLAIN, SLOTS, NAN) if name in values]
    graph.outputs.extend(later)  # which nothing takes yet
    around = values_around(outer)
    taps = stamped(outer, stamps, {**inputs, **values})
    outer.meta[TAPS] = {**taps_around(around), **taps}
    by_name = {str(value.name): value for value in graph.outputs}
    graph.outputs.clear()
    for tensor in interface.outputs:
        by_name[tensor.name].shape = ir.Shape(tensor.shape)
        graph.outputs.append(by_name[tensor.name])
    return outer


def _default(graph: ir.Graph, value: ir.Value) -> None:
    """Lets a call leave out an input of whole numbers: without it, it is one -1."""
    value.const_value = ir.tensor([-1], dtype=ir.DataType.INT64, name=value.name)
    graph.register_initializer(value)

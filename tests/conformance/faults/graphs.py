"""Changes to the ONNX model of a decoder, at tensors that the file names."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from rope_export.exporter.taps import KEY
from tests.support.planted_decoder import Change, every_node, through

Plan = Callable[[onnx.ModelProto], Change]


def names_in(model: onnx.ModelProto) -> dict[str, str]:
    """The ONNX values of the tensors that a file names, in branches or not."""
    entry = next(x.value for x in model.metadata_props if x.key == KEY)
    return {tensor: value for tensor, (value, _) in json.loads(entry).items()}


def holding(graph: onnx.GraphProto, value: str) -> onnx.GraphProto:
    """The graph, or that of a branch, in which a value is computed."""
    if any(value in node.output for node in graph.node):
        return graph
    branches = (x.g for node in graph.node for x in node.attribute if x.HasField("g"))
    return next(x for x in branches if any(value in node.output for node in x.node))


def behind_value(value: str, operator: str, *constants: np.ndarray, **attributes: Any) -> Change:
    """The value goes through an operator before anything takes it."""

    def change(whole: onnx.GraphProto) -> None:
        graph = holding(whole, value)
        for node in graph.node:
            node.output[:] = ["sound" if x == value else x for x in node.output]
        names = []
        for index, constant in enumerate(constants):
            names.append(f"planted_{operator}_{index}")
            whole.initializer.append(numpy_helper.from_array(constant, names[-1]))
        place = next(i + 1 for i, x in enumerate(graph.node) if "sound" in x.output)
        graph.node.insert(
            place, helper.make_node(operator, ["sound", *names], [value], **attributes)
        )

    return change


def made_of(tensor: str, operator: str, *constants: np.ndarray, **attributes: Any) -> Plan:
    """As `behind_value`, of a tensor."""
    return lambda model: behind_value(names_in(model)[tensor], operator, *constants, **attributes)


def taken_instead(tensor: str, other: str) -> Plan:
    """Who takes one tensor takes another one in its place."""

    def change(model: onnx.ModelProto) -> Change:
        names = names_in(model)
        value, taken = names[tensor], names.get(other, other)
        return through(value, helper.make_node("Identity", [taken], ["planted"]))

    return change


def left_out(value: str, before: str) -> Plan:
    """The value is a tensor before it."""

    def change(model: onnx.ModelProto) -> Change:
        taken = names_in(model)[before]

        def to(graph: onnx.GraphProto) -> None:
            for node in graph.node:
                node.output[:] = ["unused" if x == value else x for x in node.output]
            place = 1 + max(i for i, x in enumerate(graph.node) if taken in x.output)
            graph.node.insert(place, helper.make_node("Identity", [taken], [value]))

        return to

    return change


def narrower_between(tensor: str, value: str, by: float) -> Plan:
    """What lies between a tensor and a value gets `by` times as much, and gives as much less."""

    def change(model: onnx.ModelProto) -> Change:
        taken = names_in(model)[tensor]
        factor = numpy_helper.from_array(np.array(by, np.float32), "planted_by")

        def to(graph: onnx.GraphProto) -> None:
            for node in every_node(graph):
                node.input[:] = ["planted_in" if x == taken else x for x in node.input]
            graph.initializer.append(factor)
            place = 1 + max(i for i, x in enumerate(graph.node) if taken in x.output)
            graph.node.insert(place, helper.make_node("Mul", [taken, "planted_by"], ["planted_in"]))
            behind_value(value, "Div", np.array(by, np.float32))(graph)

        return to

    return change


def weight_of(name: str, by: Callable[[np.ndarray, dict[str, np.ndarray]], np.ndarray]) -> Change:
    """Other contents of an initializer. by: takes its own, and all of them by their names."""

    def change(graph: onnx.GraphProto) -> None:
        tensors = {x.name: x for x in graph.initializer}
        every = {x: numpy_helper.to_array(tensor) for x, tensor in tensors.items()}
        values = np.ascontiguousarray(by(every[name].copy(), every), every[name].dtype)
        tensors[name].CopyFrom(numpy_helper.from_array(values, name))

    return change


def of_one_form(node: onnx.NodeProto, branch: str) -> onnx.GraphProto:
    """A branch of an If."""
    return next(x.g for x in node.attribute if x.name == branch)

"""Artifacts of any spec, sound or with one fault planted in the file alone.

The manifest, the weights' facts and everything that `verify` holds the file to are those of the
sound layer.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from rope_export import Artifact, AttentionSpec, RotaryAttention
from rope_export.checkpoints import Layer
from rope_export.checkpoints.drawn import drawn_weights
from rope_export.exporter import pipeline
from rope_export.exporter.taps import taps_of

Weights = dict[str, Tensor]
Edit = Callable[[ir.Model], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Fault:
    """One fault. spec: facts of the layer that the file computes instead, as the sound spec's.
    weights: what it computes with. patches: what is replaced while the file is made: an object,
    an attribute of it, and what is put there. edit: changes the model that was made. first: the
    tensor that is wrong first, and those that are in the files that do not have it. kind: of fault,
    for the tables. in_module: whether eager PyTorch has it too, as patches that last while the file
    is verified. lowerings, dtypes: that can have it, all if there are none; why: others cannot."""

    name: str
    first: tuple[str, ...] = ()
    kind: str = "computation"
    in_module: bool = False
    lowerings: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    why: str = ""
    spec: Callable[[AttentionSpec], AttentionSpec] | None = None
    weights: Callable[[AttentionSpec, Weights], Weights] | None = None
    patches: Sequence[tuple[Any, str, Any]] = field(default_factory=tuple)
    edit: Edit | None = None


def artifact(
    spec: AttentionSpec,
    out: Path,
    *,
    lowering: str,
    cache: str,
    padding: bool = False,
    fault: Fault | None = None,
    seed: int = 0,
) -> Artifact:
    """The layer with drawn weights, exported by the pipeline; with the fault, if one is given."""
    source = Layer(
        spec=spec,
        facts={"kind": "drawn", "layer": 0, "seed": seed, "config_sha256": "0" * 64},
        path=str(out),
        names={name: name for name in spec.weight_shapes},
        weights=lambda: drawn_weights(spec, seed),
        weight=lambda name: drawn_weights(spec, seed)[name],
    )
    model = SimpleNamespace(layer=lambda index: source)
    with ExitStack() as stack:
        stack.enter_context(patch.object(pipeline, "open_model", lambda *a, **k: model))
        if fault is not None:
            stack.enter_context(_planted(fault, source.weights()))
        return pipeline.export(
            out,
            out=out,
            lowering=lowering,
            cache=cache,  # type: ignore[arg-type]
            padding=padding,
        )


@contextmanager
def _planted(fault: Fault, sound: Weights) -> Iterator[None]:
    """While it lasts, the pipeline makes a file that has the fault."""
    lowered, translate = pipeline.lowered, pipeline.translate

    def wrong_layer(layer: RotaryAttention, *rest: Any) -> RotaryAttention:
        spec = layer.spec if fault.spec is None else fault.spec(layer.spec)
        weights = dict(sound) if fault.weights is None else fault.weights(spec, dict(sound))
        shapes = spec.weight_shapes
        kept = {name: value for name, value in weights.items() if name in shapes}
        return lowered(RotaryAttention.from_weights(spec, kept), *rest)

    def wrong_model(*given: Any) -> ir.Model:
        model = translate(*given)
        if fault.edit is not None:
            fault.edit(model)
        _hold(model, sound)
        return model

    with ExitStack() as stack:
        stack.enter_context(patched(fault))
        stack.enter_context(patch.object(pipeline, "lowered", wrong_layer))
        stack.enter_context(patch.object(pipeline, "translate", wrong_model))
        yield


@contextmanager
def patched(fault: Fault) -> Iterator[None]:
    """While it lasts, eager PyTorch has the fault."""
    with ExitStack() as stack:
        for place, name, wrong in fault.patches:
            stack.enter_context(patch.object(place, name, wrong))
        yield


def _hold(model: ir.Model, sound: Mapping[str, Tensor]) -> None:
    """The file holds every weight of the sound layer, whether it computes with it or not: what is
    looked for is a fault in the computation."""
    there = model.graph.initializers
    for name, value in sound.items():
        stored = value.t().contiguous() if name.endswith("_proj.weight") else value
        wrong = there.get(name)
        if wrong is not None:
            held = wrong.const_value
            assert held is not None
            if np.array_equal(held.numpy(), stored.numpy()):
                continue
            # A wrong weight goes by another name, and the sound one lies beside it.
            del there[name]
            wrong.name = f"{name}.wrong"
            there[wrong.name] = wrong
        there[name] = constant(name, stored)


def constant(name: str, value: Any) -> ir.Value:
    """An initializer."""
    tensor: Any = ir.tensor(value, name=name)
    held = ir.Value(name=name, const_value=tensor)
    held.dtype, held.shape = tensor.dtype, ir.Shape(tensor.shape)
    return held


def inserted(name: str, operator: str, *constants: Any, **attributes: Any) -> Edit:
    """An operator between the model's input `name` and what takes it."""
    return chained(name, (operator, constants, attributes))


Step = tuple[str, Sequence[Any], Mapping[str, Any]]
"""An operator, the constants that it takes after its input, and its attributes."""


def chained(name: str, *steps: Step) -> Edit:
    """Operators between the model's input `name` and what takes it."""

    def edit(model: ir.Model) -> None:
        (value,) = (x for x in model.graph.inputs if x.name == name)
        uses = list(value.uses())
        nodes = _nodes(model, name, value, steps)
        for use in uses:
            use.node.replace_input_with(use.idx, nodes[-1].outputs[0])
        for node in reversed(nodes):
            model.graph.insert_before(model.graph[0], node)

    return edit


def behind(tensor: str, *steps: Step) -> Edit:
    """Operators between what makes a tensor that the file names and everything that takes it."""

    def edit(model: ir.Model) -> None:
        name = taps_of(model)[tensor].value
        (value,) = (x for node in model.graph for x in node.outputs if x.name == name)
        uses, producer = list(value.uses()), value.producer()
        assert producer is not None
        value.name = f"{name}.sound"
        nodes = _nodes(model, tensor, value, steps)
        wrong = nodes[-1].outputs[0]
        wrong.name = name
        for use in uses:
            use.node.replace_input_with(use.idx, wrong)
        for at, output in enumerate(model.graph.outputs):
            if output is value:
                model.graph.outputs[at] = wrong
        model.graph.insert_after(producer, nodes)

    return edit


def _nodes(model: ir.Model, name: str, value: ir.Value, steps: Sequence[Step]) -> list[ir.Node]:
    """One upon the other, the first on `value`, whose dtype and shape the last one has."""
    nodes: list[ir.Node] = []
    for at, (operator, constants, attributes) in enumerate(steps):
        taken = [nodes[-1].outputs[0] if nodes else value]
        for index, given in enumerate(constants):
            held = constant(f"planted_{name}_{at}_{index}", given)
            model.graph.initializers[str(held.name)] = held
            taken.append(held)
        node = ir.node(operator, taken, dict(attributes))
        node.outputs[0].name = f"planted_{name}_{at}"
        nodes.append(node)
    last = nodes[-1].outputs[0]
    assert value.dtype is not None
    last.dtype, last.shape = value.dtype, value.shape
    return nodes


def cast_through(dtype: ir.DataType, back: ir.DataType) -> tuple[Step, Step]:
    """Rounds to a dtype."""
    return ("Cast", (), {"to": dtype}), ("Cast", (), {"to": back})


def both(*edits: Edit) -> Edit:
    """One edit after the other."""

    def edit(model: ir.Model) -> None:
        for one in edits:
            one(model)

    return edit


def changed(**facts: Any) -> Callable[[AttentionSpec], AttentionSpec]:
    """A spec with other facts."""
    return lambda spec: dataclasses.replace(spec, **facts)


def rotated(**facts: Any) -> Callable[[AttentionSpec], AttentionSpec]:
    """A spec with another rotation."""

    def change(spec: AttentionSpec) -> AttentionSpec:
        assert spec.rope is not None
        return dataclasses.replace(spec, rope=dataclasses.replace(spec.rope, **facts))

    return change


def normed(**facts: Any) -> Callable[[AttentionSpec], AttentionSpec]:
    """A spec whose query and key norms are others."""

    def change(spec: AttentionSpec) -> AttentionSpec:
        norms = {
            name: dataclasses.replace(norm, **facts)
            for name in ("q_norm", "k_norm")
            if (norm := getattr(spec, name)) is not None
        }
        return dataclasses.replace(spec, **norms)

    return change


def scaled(factor: float, *names: str) -> Callable[[AttentionSpec, Weights], Weights]:
    """Weights some of which are multiplied; with 0, they are dropped."""

    def change(spec: AttentionSpec, weights: Weights) -> Weights:
        return weights | {name: weights[name] * factor for name in names}

    return change


def half(value: Tensor) -> Tensor:
    return value.to(torch.float16).float()

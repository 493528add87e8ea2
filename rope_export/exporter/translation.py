"""From a lowered module to an ONNX model: traced, translated and cleaned up."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnxscript import optimizer
from torch import nn

from rope_export.errors import RopeExportError
from rope_export.exporter import composites, operator_table, taps, type_promotion
from rope_export.exporter.passes import CancelReshapesPass
from rope_export.interface import Interface, TensorType

NEWEST_OPSET = 24
"""The newest opset whose operators torch.onnx.export writes."""


def translate(module: nn.Module, interface: Interface, opset: int) -> ir.Model:
    """The module as an ONNX model whose tensors and dynamic axes are those of the interface."""
    names = [tensor.name for tensor in interface.outputs]
    model = traced(module, interface.inputs, names, opset, by_name=True)
    taps.named(model, "layer")
    _clean_up(model, set(module.state_dict()))
    for value, tensor in zip(model.graph.inputs, interface.inputs, strict=True):
        value.shape = ir.Shape(tensor.shape)
    return model


def traced(
    module: nn.Module,
    inputs: Sequence[TensorType],
    outputs: Sequence[str],
    opset: int,
    *,
    by_name: bool = False,
) -> ir.Model:
    """The module as an ONNX model as torch writes it, with the inputs and outputs of these names.

    by_name: the module takes the inputs by their names, and not in their order.
    """
    examples, shapes = _examples(inputs), _dynamic_shapes(inputs)
    arguments: dict[str, Any] = {"args": tuple(examples.values())}
    if by_name:
        arguments = {"kwargs": examples}
    operator_table.read_once()
    with (
        _quiet(),
        torch.no_grad(),
        composites.replaced_in_place(),
        type_promotion.from_the_trace(),
        _no_cache(),
    ):
        program = torch.onnx.export(
            module,
            **arguments,
            dynamo=True,
            opset_version=opset,
            input_names=[tensor.name for tensor in inputs],
            output_names=list(outputs),
            dynamic_shapes=shapes if by_name else (tuple(shapes.values()),),
            optimize=False,
            verbose=False,
        )
    assert program is not None
    return program.model


def cleaned(model: ir.Model, module: nn.Module, prefix: str) -> ir.Model:
    """The traced model of a module with what is constant folded, but no weight.

    prefix: of the names that values get which can be looked at.
    """
    taps.named(model, prefix)
    _clean_up(model, module.state_dict().keys() & set(model.graph.initializers))
    return model


def _examples(inputs: Sequence[TensorType]) -> dict[str, torch.Tensor]:
    """Inputs to trace with.

    Sizes are at least 2 and all different: torch.export fixes an axis of size 0 or 1, and takes two
    axes of one size for the same.
    """
    axes = {axis for tensor in inputs for axis in tensor.shape}
    sizes = {"batch": 2, "sequence": 3, "past": 6 if "past" in axes else 0, "capacity": 7}
    sizes["total"] = 5 if "capacity" in axes else sizes["past"] + sizes["sequence"]
    return {t.name: torch.zeros(t.sized(sizes), dtype=_dtype(t)) for t in inputs}


def _dynamic_shapes(inputs: Sequence[TensorType]) -> dict[str, dict[int, torch.export.Dim]]:
    """The symbol of every dynamic axis of every input."""
    axes = {
        name: torch.export.Dim(name) for t in inputs for name in t.shape if isinstance(name, str)
    }
    if "total" in axes and not axes.keys() & {"past", "capacity"}:
        axes["total"] = axes["sequence"]  # without a past they are one size, and one symbol
    return {
        t.name: {at: axes[name] for at, name in enumerate(t.shape) if isinstance(name, str)}
        for t in inputs
    }


def _dtype(tensor: TensorType) -> torch.dtype:
    return getattr(torch, tensor.dtype)


def _clean_up(model: ir.Model, weights: set[str]) -> None:
    """Folds what is constant, but no weight: each stays in the file as it was deployed, under its
    own name, so that it can be proven.

    The passes see the weights as inputs. As constants, a weight of nothing but ones or zeros would
    be folded away, and of two equal ones only the first would stay.
    Raises: RopeExportError if the graph does not use a weight.
    """
    graph = model.graph
    hidden = {name: value for name, value in graph.initializers.items() if name in weights}
    values = {name: value.const_value for name, value in hidden.items()}
    for name, value in hidden.items():
        del graph.initializers[name]
        value.const_value = None
        graph.inputs.append(value)
    optimizer.optimize_ir(model)
    CancelReshapesPass()(model)
    unused = sorted(weights - {name for name, value in hidden.items() if value.uses()})
    if unused:
        raise RopeExportError(f"the exported model does not use the weight {unused[0]!r}.")
    for name, value in hidden.items():
        graph.inputs.remove(value)
        value.const_value = values[name]
        graph.register_initializer(value)
    RemoveUnusedNodesPass()(model)


@contextmanager
def _no_cache() -> Iterator[None]:
    """Has torch compute the sizes of every traced value anew: with symbolic sizes, its cache takes
    longer to fill than to do without."""
    from torch._dynamo import config

    with config.patch(fake_tensor_cache_enabled=False):
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences what torch's exporter logs and warns; its errors still come through."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)

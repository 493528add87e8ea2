"""From a lowered module to an ONNX model: traced, translated and cleaned up."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import onnx_ir as ir
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnxscript import optimizer
from torch import nn

from rope_export.errors import RopeExportError
from rope_export.exporter import operator_table
from rope_export.exporter.passes import CancelReshapesPass
from rope_export.interface import Interface, TensorType


def translate(module: nn.Module, interface: Interface, opset: int) -> ir.Model:
    """The module as an ONNX model whose tensors and dynamic axes are those of the interface."""
    examples = _examples(interface)
    operator_table.read_once()
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module,
            kwargs=examples,
            dynamo=True,
            opset_version=opset,
            input_names=[t.name for t in interface.inputs],
            output_names=[t.name for t in interface.outputs],
            dynamic_shapes=_dynamic_shapes(interface),
            optimize=False,
            verbose=False,
        )
        assert program is not None
        _clean_up(program.model, set(module.state_dict()))
    for value, tensor in zip(program.model.graph.inputs, interface.inputs, strict=True):
        value.shape = ir.Shape(tensor.shape)
    return program.model


def _examples(interface: Interface) -> dict[str, torch.Tensor]:
    """Inputs to trace with.

    Sizes are at least 2 and all different: torch.export fixes an axis of size 0 or 1, and takes two
    axes of one size for the same.
    """
    sizes = {"batch": 2, "sequence": 3, "past": 5 if _grows(interface) else 0, "capacity": 7}
    sizes["total"] = sizes["past"] + sizes["sequence"]
    return {t.name: torch.zeros(t.sized(sizes), dtype=_dtype(t)) for t in interface.inputs}


def _dynamic_shapes(interface: Interface) -> dict[str, dict[int, torch.export.Dim]]:
    """The symbol of every dynamic axis of every input."""
    axes = {
        name: torch.export.Dim(name)
        for t in interface.inputs
        for name in t.shape
        if isinstance(name, str)
    }
    if not _grows(interface) and "total" in axes:
        axes["total"] = axes["sequence"]  # without a past they are one size, and one symbol
    return {
        t.name: {at: axes[name] for at, name in enumerate(t.shape) if isinstance(name, str)}
        for t in interface.inputs
    }


def _grows(interface: Interface) -> bool:
    return any("past" in t.shape for t in interface.inputs)


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

"""A model whose attention layers are computed with a lowering's operators."""

from collections.abc import Mapping
from typing import TypeVar

from torch import nn

from rope_export.attention.layer import RotaryAttention
from rope_export.errors import InputError
from rope_export.lowerings.base import Lowering
from rope_export.lowerings.choice import refusal
from rope_export.lowerings.projections import Projection, QuantizedProjection
from rope_export.quantization import Packed, Quantization

Model = TypeVar("Model", bound=nn.Module)


def lowered(
    model: Model,
    lowering: Lowering,
    cache: str,
    packed: Mapping[str, Packed] | None = None,
    quantization: Quantization | None = None,
) -> Model:
    """The model with every attention layer in it, itself or at any depth, lowered.

    Takes the weights of the layers' projections over, one at a time, so that they are in memory
    about once. packed: by the names that the weights have in the model, those that are quantized.
    Raises: InputError for a layer that the lowering cannot express, before anything is changed.
    """
    layers = {n: m for n, m in model.named_modules() if isinstance(m, RotaryAttention)}
    for path, layer in layers.items():
        problem = refusal(lowering, layer.spec, cache, quantization)
        if problem is not None:
            raise InputError(f"{path}: {problem}" if path else problem)
    for path, layer in layers.items():
        for name, module in list(layer.named_children()):
            if not isinstance(module, nn.Linear):
                continue
            if packed is None or quantization is None:
                setattr(layer, name, Projection(module))
                continue
            weight = f"{path}.{name}.weight" if path else f"{name}.weight"
            setattr(layer, name, QuantizedProjection(module, packed[weight], quantization))
        layer.operators, layer.keeps_cache = lowering, cache != "none"
    return model

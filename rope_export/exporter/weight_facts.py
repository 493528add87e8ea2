"""Facts of each weight for a manifest: its source, its place in the file, its hash."""

import hashlib
from collections.abc import Mapping

import torch
from msgspec.structs import replace
from torch import Tensor

from rope_export.artifacts.manifest import Weight
from rope_export.checkpoints import Layer
from rope_export.lowerings import OFFSETS, SCALES, ZERO_POINTS, packed_name
from rope_export.quantization import Packed, Quantization


def facts_of_weights(
    layer: Layer,
    tensors: dict[str, Tensor],
    packed: Mapping[str, Packed],
    quantization: Quantization | None,
) -> dict[str, Weight]:
    """Facts of every tensor of the layer, by its name in the spec.

    tensors: as deployed. packed: those that are quantized.
    """
    facts = {
        name: Weight(
            source_tensor=layer.names[name],
            initializer=name,
            transposed=name.endswith("_proj.weight"),
            sha256=tensor_hash(tensor),
            source_form=layer.forms.get(name),
        )
        for name, tensor in tensors.items()
    }
    for name, stored in packed.items():
        assert quantization is not None
        projection = name.removesuffix("weight")
        facts[name] = replace(
            facts[name],
            initializer=projection + packed_name(quantization),
            transposed=False,
            scales=projection + SCALES,
            inputs=tensors[name].shape[1],
            block_size=stored.block_size(quantization.bits),
            stored=stored.stored,
            zero_points=None if stored.zeros is None else projection + ZERO_POINTS,
            offsets=None if stored.offsets is None else projection + OFFSETS,
        )
    return facts


def tensor_hash(tensor: Tensor) -> str:
    """sha256 of a tensor's bytes in row-major order, in hexadecimal."""
    return hashlib.sha256(tensor.contiguous().flatten().view(torch.uint8).numpy().data).hexdigest()

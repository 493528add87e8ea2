"""A layer's projections as an artifact stores them: quantized, or the source's own integers."""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from rope_export.arrays import to_torch
from rope_export.checkpoints.integers import Integers
from rope_export.checkpoints.kept import packed_integers
from rope_export.quantization import Packed, Quantization, is_quantized, pack, unpack


def store(
    weights: Mapping[str, Tensor], integers: Mapping[str, Integers], quantization: Quantization
) -> dict[str, Packed]:
    """The projections among `weights`, quantized to the bits of `quantization`.

    integers: those of them that the source has as integers already, by name.
    """
    stored = {}
    for name in filter(is_quantized, weights):
        source_integers = integers.get(name)
        packed = None
        if source_integers is not None:
            packed = packed_integers(source_integers, quantization.bits, weights[name].dtype)
        if packed is None:
            packed = pack(weights[name], quantization)
            packed = packed if source_integers is None else replace(packed, stored="requantized")
        stored[name] = packed
    return stored


def deployed(
    weights: Mapping[str, Tensor],
    integers: Mapping[str, Integers],
    quantization: Quantization | None,
) -> dict[str, Tensor]:
    """The weights that a runtime computes with, after quantization if `quantization` is given.

    Integers that are kept bit for bit stand for the source's own weights, which are returned.
    """
    if quantization is None:
        return dict(weights)
    stored = store(weights, integers, quantization)
    return {
        name: to_torch(unpack(stored[name], quantization, weight.shape[1]))
        if name in stored and stored[name].stored != "kept"
        else weight
        for name, weight in weights.items()
    }

"""Weights of transformers' model as an artifact deploys them: quantized and dequantized again."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from rope_export.arrays import to_torch
from rope_export.artifacts.manifest import Weight
from rope_export.quantization import Quantization, pack, unpack

ROUNDS_TO_INT8 = 4
"""The accuracy level at which onnxruntime's kernel rounds what it multiplies with to int8."""


class Deployed(Protocol):
    """What is asked of a decoder's manifest, or of the facts of a file that others made."""

    @property
    def source(self) -> Mapping[str, Any]: ...
    @property
    def dtype(self) -> str: ...
    @property
    def layers(self) -> Sequence[int | None]: ...
    @property
    def quantization(self) -> Quantization | None: ...
    @property
    def weights(self) -> Mapping[str, Weight]: ...


def quantize(
    model: Any,
    manifest: Deployed,
    in_file: Callable[[str], Tensor] | None = None,
) -> dict[int, int]:
    """Puts what is left of each quantized weight in its place, one at a time.

    in_file: reads it from the artifact by the parameter's name; without, it is quantized here.
    Rows are quantized one by one, so that a weight that transformers holds as one and the artifact
    as several, or in another order of rows, becomes the same.
    Returns: features that share a scale, by the place of each weight whose input is rounded to
        int8.
    """
    quantization = manifest.quantization
    if quantization is None:
        return {}
    names = {name for name, facts in manifest.weights.items() if facts.scales is not None}
    blocks = {}
    for path, module, shared in _quantized(model, names):
        if in_file is None:
            value = _dequantized(module.weight, quantization)
        else:
            value = in_file(f"{path}.weight")
        if shared:
            module.weight.data = value
        else:
            module.weight = nn.Parameter(value, requires_grad=False)
        if quantization.accuracy_level == ROUNDS_TO_INT8:
            blocks[module.weight.data_ptr()] = quantization.block_size
    return blocks


def _quantized(model: nn.Module, names: Collection[str]) -> Iterator[tuple[str, Any, bool]]:
    """The path of each linear layer that the artifact has quantized, by the names of what it has,
    and the layer; and whether an embedding that shares its weight has it quantized too."""
    paths = {name.rpartition(".")[0].rpartition(".")[0] for name in names}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for path, module in model.named_modules():
        if type(module) is not nn.Linear:
            continue
        own, parent = f"{path}.weight", path.rpartition(".")[0]
        others = [x for x, y in parameters.items() if y is module.weight and x != own]
        if own in names or any(x in names for x in others):
            yield path, module, all(x in names for x in others) or own not in names
        elif parent in paths and not any(x.startswith(f"{path}.") for x in names):
            yield path, module, True


def _dequantized(weight: Tensor, quantization: Quantization) -> Tensor:
    return to_torch(unpack(pack(weight, quantization), quantization, weight.shape[1]))

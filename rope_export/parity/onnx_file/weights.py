"""Weights of transformers' model found in a file that somebody else made.

A weight is known by its layer, by the words of its module's path among the names of the tensor and
of the nodes that take it, and by its shape. What cannot be told apart is not guessed.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rope_export.arrays import to_torch
from rope_export.errors import UnavailableError
from rope_export.parity.onnx_file.file import OnnxFile
from rope_export.parity.onnx_file.tensors import (
    Tensor,
    alike,
    layer_number,
    tensors_in,
    words_of,
)

PARTS = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}
"""Modules whose weight others keep as several, one after the other by rows; and the other way."""

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """A weight that was found. shape: of the weight. parts: the tensors that hold it, one below the
    other, and the rows of each that are its own."""

    shape: Shape
    parts: tuple[tuple[Tensor, slice], ...]

    @property
    def first(self) -> Tensor:
        return self.parts[0][0]

    def values(self) -> np.ndarray:
        return self._cut([tensor.laid()[rows] for tensor, rows in self.parts])

    def steps(self) -> np.ndarray:
        """Of a quantized one how far two neighbouring levels are apart, by number."""
        return self._cut([tensor.steps()[rows] for tensor, rows in self.parts])

    def _cut(self, parts: list[np.ndarray]) -> np.ndarray:
        """Without what fills the last block of a row up."""
        whole = np.concatenate(parts)
        return np.ascontiguousarray(whole[:, : self.shape[1]] if whole.ndim == 2 else whole)


def file_weights(
    file: OnnxFile, shapes: Mapping[str, Shape], layers: int, offset: Sequence[str]
) -> dict[str, np.ndarray]:
    """The weight of each parameter, by its name in transformers' model.

    shapes: of the parameters. layers: how many the model has. offset: norms that add 1 to their
    weight, by the names of their parameters.
    Raises: UnavailableError naming those that are not found.
    """
    tensors = list(tensors_in(file, layers))
    weights: dict[str, np.ndarray] = {}
    missing = []
    for name, shape in shapes.items():
        found = find(name, shape, tensors)
        if found is None:
            missing.append(name)
            continue
        array = found.values()
        weights[name] = array - 1 if name in offset and not found.first.added else array
    if missing:
        raise UnavailableError(
            f"{file.path}: {len(missing)} weights are not found by name and shape, the first: "
            f"{missing[0]} {shapes[missing[0]]}. Give the checkpoint as `source`."
        )
    return weights


def fill(model: Any, file: OnnxFile, layers: int) -> None:
    """Puts the weights of a file in the place of those of transformers' model.

    Raises: UnavailableError naming those that are not found.
    """
    parameters = dict(model.named_parameters())
    shapes = {name: tuple(x.shape) for name, x in parameters.items()}
    offset = [f"{path}.weight" for path, module in model.named_modules() if _adds_one(module)]
    with torch.no_grad():
        for name, value in file_weights(file, shapes, layers, offset).items():
            parameters[name].copy_(to_torch(np.ascontiguousarray(value)))


def _adds_one(module: Any) -> bool:
    """Whether a norm multiplies with 1 + its weight: with 0, two inputs give two outputs."""
    weight = getattr(module, "weight", None)
    if weight is None or weight.ndim != 1 or "norm" not in type(module).__name__.lower():
        return False
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.zero_()
        token = torch.linspace(-1, 1, len(weight), dtype=weight.dtype)
        left, right = module(torch.stack((token, -token))[None])[0]
        weight.copy_(kept)
    return not torch.equal(left, right)


def find(name: str, shape: Shape, tensors: Sequence[Tensor]) -> Found | None:
    """The weight of a parameter: a tensor of its own, several below one another, or rows of one
    that holds others too. None if none of these is there, or several differ."""
    return (
        _whole(name, shape, tensors) or _joined(name, shape, tensors) or _rows(name, shape, tensors)
    )


def _whole(name: str, shape: Shape, tensors: Sequence[Tensor]) -> Found | None:
    one = _best(name, [x for x in tensors if x.shape == shape or _is_filled_up(x, shape)])
    return None if one is None else Found(shape=shape, parts=((one, slice(None)),))


def _is_filled_up(tensor: Tensor, shape: Shape) -> bool:
    """Whether its rows may be those of a weight, filled up to whole blocks."""
    stored = tensor.quantized
    if stored is None or stored.node.op_type != "GatherBlockQuantized" or len(shape) != 2:
        return False
    return tensor.shape[0] == shape[0] and tensor.shape[1] > shape[1]


def _joined(name: str, shape: Shape, tensors: Sequence[Tensor]) -> Found | None:
    module = module_of(name)
    parts = []
    for part in PARTS.get(module, ()):
        one = _best(name.replace(module, part), [x for x in tensors if x.shape[1:] == shape[1:]])
        if one is None:
            return None
        parts.append((one, slice(None)))
    if not parts or sum(x.shape[0] for x, _ in parts) != shape[0]:
        return None
    return Found(shape=shape, parts=tuple(parts))


def _rows(name: str, shape: Shape, tensors: Sequence[Tensor]) -> Found | None:
    """Values have as many rows as keys, so the rest is the queries'."""
    module = module_of(name)
    for whole, parts in PARTS.items():
        if module not in parts:
            continue
        fitting = [x for x in tensors if x.shape[1:] == shape[1:] and x.shape[0] > shape[0]]
        named_after_all = [x for x in fitting if x.words.issuperset(parts)]
        one = _best(name.replace(module, whole), fitting) or _best(name, named_after_all)
        if one is None:
            continue
        rows, at = one.shape[0], parts.index(module)
        start = {0: 0, len(parts) - 1: rows - shape[0]}.get(at, rows - 2 * shape[0])
        return Found(shape=shape, parts=((one, slice(start, start + shape[0])),))
    return None


def _best(name: str, tensors: Sequence[Tensor]) -> Tensor | None:
    """The tensor that shares most words with a parameter's name, if one does."""
    words, layer = words_of(name), layer_number(name)
    kind = "bias" if name.endswith("bias") else "weight"
    scores: dict[int, list[Tensor]] = defaultdict(list)
    last = words - {"weight", "bias"}
    module = alike(module_of(name))
    for tensor in tensors:
        no_layer = not tensor.layers or layer_number(tensor.name) is None
        here = no_layer if layer is None else layer in tensor.layers
        if not here or module not in tensor.words:
            continue
        bias = "bias" in tensor.words
        scores[2 * len(last & tensor.words) + (bias == (kind == "bias"))].append(tensor)
    best = scores[max(scores)] if scores else []
    if len(best) > 1:
        first = best[0].laid()
        if not all(np.array_equal(x.laid(), first) for x in best[1:]):
            return None
    return best[0] if best else None


def module_of(name: str) -> str:
    """The module of a parameter, such as q_proj; of one that stands alone, itself."""
    return name.split(".")[-2:][0]

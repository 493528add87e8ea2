"""Weights of transformers' model found in a file that somebody else made, where there is no
checkpoint to read them from.

A weight is known by its layer, by the words of its module's path among the names of the tensor and
of the nodes that take it, and by its shape. What cannot be told apart is not guessed.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rope_export.arrays import to_torch
from rope_export.errors import UnavailableError
from rope_export.parity.onnx_file.file import OnnxFile

PASSING = ("Transpose", "Cast", "Identity")
"""Nodes between a tensor and the node that it is a weight of."""

PARTS = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}
"""Modules whose weight others keep as several, one after the other by rows; and the other way."""

ALIKE = {
    "attn": "self_attn",
    "final_norm_layernorm": "norm",
    "embed_tokens": "embed_tokens",
    "layernorm": "norm",
}
"""Words of exporters and the ones of transformers."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Tensor:
    """A tensor of the file. words: of its name and of the nodes that take it. layers: that those
    name; of several, equal tensors are kept once. transposed: whether it is (in, out). added:
    whether it is taken by an Add, as a norm's weight is before 1 is added.
    """

    name: str
    value: np.ndarray
    words: frozenset[str]
    layers: frozenset[int]
    transposed: bool
    added: bool


def file_weights(
    file: OnnxFile, shapes: Mapping[str, tuple[int, ...]], layers: int, offset: Sequence[str]
) -> dict[str, np.ndarray]:
    """The weight of each parameter, by its name in transformers' model.

    shapes: of the parameters. layers: how many the model has. offset: norms that add 1 to their
    weight, by the names of their parameters.
    Raises: UnavailableError naming those that are not found.
    """
    tensors = list(_tensors(file, layers))
    found: dict[str, np.ndarray] = {}
    missing = []
    for name, shape in shapes.items():
        value = _whole(name, shape, tensors) or _joined(name, shape, tensors)
        value = value or _cut_out(name, shape, tensors)
        if value is None:
            missing.append(name)
            continue
        array, tensor = value
        found[name] = array - 1 if name in offset and not tensor.added else array
    if missing:
        raise UnavailableError(
            f"{file.path}: {len(missing)} weights are not found by name and shape, the first: "
            f"{missing[0]} {shapes[missing[0]]}. Give the checkpoint as `source`."
        )
    return found


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
    """Whether a norm multiplies with 1 + its weight."""
    weight = getattr(module, "weight", None)
    if weight is None or weight.ndim != 1 or "norm" not in type(module).__name__.lower():
        return False
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.zero_()
        result = module(torch.ones_like(weight)[None, None])
        weight.copy_(kept)
    return bool(result.abs().max() > 0)


Found = tuple[np.ndarray, Tensor] | None


def _whole(name: str, shape: tuple[int, ...], tensors: Sequence[Tensor]) -> Found:
    """One tensor that is the weight."""
    return _best(name, [x for x in tensors if _laid(x).shape == shape])


def _joined(name: str, shape: tuple[int, ...], tensors: Sequence[Tensor]) -> Found:
    """Several tensors that are the weight, one below the other."""
    module = _module(name)
    parts = []
    for part in PARTS.get(module, ()):
        fitting = [x for x in tensors if _laid(x).shape[1:] == shape[1:]]
        one = _best(name.replace(module, part), fitting)
        if one is None:
            return None
        parts.append(one)
    if not parts:
        return None
    value = np.concatenate([x for x, _ in parts])
    return (value, parts[0][1]) if value.shape == shape else None


def _cut_out(name: str, shape: tuple[int, ...], tensors: Sequence[Tensor]) -> Found:
    """Rows of a tensor that holds the weights of several modules. Values have as many rows as
    keys, so the rest is the queries'."""
    module = _module(name)
    for whole, parts in PARTS.items():
        if module not in parts:
            continue
        fitting = [
            x for x in tensors if _laid(x).shape[1:] == shape[1:] and len(_laid(x)) > shape[0]
        ]
        one = _best(name.replace(module, whole), fitting)
        if one is None:
            continue
        rows, at = len(one[0]), parts.index(module)
        start = {0: 0, len(parts) - 1: rows - shape[0]}.get(at, rows - 2 * shape[0])
        return one[0][start : start + shape[0]], one[1]
    return None


def _best(name: str, tensors: Sequence[Tensor]) -> Found:
    """The tensor that shares most words with a parameter's name, if one does."""
    words, layer = _words(name), _number(name)
    kind = "bias" if name.endswith("bias") else "weight"
    scores: dict[int, list[Tensor]] = defaultdict(list)
    last = words - {"weight", "bias"}
    module = _alike(_module(name))
    for tensor in tensors:
        no_layer = not tensor.layers or _number(tensor.name) is None
        here = no_layer if layer is None else layer in tensor.layers
        if not here or module not in tensor.words:
            continue
        bias = "bias" in tensor.words
        scores[2 * len(last & tensor.words) + (bias == (kind == "bias"))].append(tensor)
    best = scores[max(scores)] if scores else []
    if not best or any(not np.array_equal(x.value, best[0].value) for x in best[1:]):
        return None
    return _laid(best[0]), best[0]


def _laid(tensor: Tensor) -> np.ndarray:
    """As transformers has it: (out, in)."""
    return tensor.value.T if tensor.transposed else tensor.value


def _tensors(file: OnnxFile, layers: int) -> Iterator[Tensor]:
    """Every tensor of floating point with one axis or more."""
    import onnx
    from onnx import numpy_helper

    takers: dict[str, list[Any]] = defaultdict(list)
    for node in file.graph.node:
        for name in node.input:
            takers[name].append(node)
    floating = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    for proto in file.graph.initializer:
        if proto.data_type not in floating or not proto.dims:
            continue
        uses = list(_uses(proto.name, takers, False))
        texts = [proto.name, *(text for node, _, _ in uses for text in _texts(node))]
        numbers = {x for x in map(_number, texts) if x is not None and x < layers}
        yield Tensor(
            name=proto.name,
            value=numpy_helper.to_array(_inside(proto, file)),
            words=frozenset().union(*map(_words, texts)),
            layers=frozenset(numbers),
            transposed=any(_is_transposed(*use) for use in uses),
            added=any(node.op_type == "Add" for node, _, _ in uses),
        )


def _texts(node: Any) -> Iterator[str]:
    """The names of a node, and of the modules that it comes from, which torch's exporter keeps."""
    yield node.name
    yield from (x.value for x in node.metadata_props if x.key.endswith("name_scopes"))
    yield from node.output


def _uses(
    name: str, takers: Mapping[str, list[Any]], turned: bool
) -> Iterator[tuple[Any, str, bool]]:
    """The nodes that a tensor is a weight of, by which name they take it, and whether it was
    transposed before."""
    for node in takers[name]:
        if node.op_type in PASSING and node.output:
            yield from _uses(node.output[0], takers, turned != (node.op_type == "Transpose"))
        else:
            yield node, name, turned


def _is_transposed(node: Any, name: str, turned: bool) -> bool:
    """Whether a tensor that a product takes is (in, out)."""
    if len(node.input) < 2 or node.input[1] != name:
        return False
    if node.op_type == "Gemm":
        by_rows = any(x.name == "transB" and x.i for x in node.attribute)
        return by_rows == turned
    return node.op_type == "MatMul" and not turned


def _inside(proto: Any, file: OnnxFile) -> Any:
    """The tensor with its numbers, which may lie in a file beside the model."""
    if not proto.external_data:
        return proto
    entries = {x.key: x.value for x in proto.external_data}
    data, offset = file.data[entries["location"]], int(entries.get("offset", 0))
    length = int(entries.get("length", len(data) - offset))
    inside = type(proto)()
    inside.CopyFrom(proto)
    del inside.external_data[:]
    inside.data_location = 0
    inside.raw_data = bytes(data[offset : offset + length])
    return inside


def _words(text: str) -> frozenset[str]:
    return frozenset(map(_alike, re.split(r"[./:\[\]', ]+", text)))


def _alike(word: str) -> str:
    return ALIKE.get(word, word)


def _module(name: str) -> str:
    """The module of a parameter, such as q_proj; of one that stands alone, itself."""
    return name.split(".")[-2:][0]


def _number(text: str) -> int | None:
    """The layer that a name tells."""
    match = re.search(r"(?:layers|h|blocks)[._/](\d+)(?=[._/])", text)
    return int(match[1]) if match else None

"""The tensors of an ONNX file that somebody else made, with what the file tells of each: its own
name, and the names of the nodes that take it."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rope_export.parity.onnx_file.constants import Constants
from rope_export.parity.onnx_file.file import OnnxFile
from rope_export.parity.onnx_file.quantized import Quantized, quantized_in

PASSING = ("Transpose", "Cast", "Identity")
"""Nodes between a tensor and the node that it is a weight of."""

ALIKE = {
    "attn": "self_attn",
    "final_norm_layernorm": "norm",
    "embed_tokens": "embed_tokens",
    "layernorm": "norm",
}
"""Words of exporters and the ones of transformers."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Tensor:
    """A tensor of the file. read: its numbers, made anew by each call. words: of its name and of
    the nodes that take it. layers: that those name; of several, equal tensors are kept once.
    transposed: whether it is (in, out). added: whether it is taken by an Add, as a norm's weight is
    before 1 is added. quantized: how it is stored, if it is quantized.
    """

    name: str
    stored: tuple[int, ...]
    read: Callable[[], np.ndarray]
    words: frozenset[str]
    layers: frozenset[int]
    transposed: bool
    added: bool = False
    quantized: Quantized | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """As transformers has it: (out, in)."""
        return self.stored[::-1] if self.transposed else self.stored

    def laid(self) -> np.ndarray:
        """Its numbers as transformers has them: (out, in)."""
        return self._turned(self.read())

    def steps(self) -> np.ndarray:
        """Of a quantized one how far two neighbouring levels are apart, by number, (out, in)."""
        assert self.quantized is not None
        return self._turned(self.quantized.steps())

    def _turned(self, value: np.ndarray) -> np.ndarray:
        return value.T if self.transposed else value


def tensors_in(file: OnnxFile, layers: int) -> Iterator[Tensor]:
    """Every tensor of floating point with one axis or more, and every quantized weight.

    layers: how many the model has.
    Raises: UnavailableError for weights that are quantized in a way that is not known.
    """
    import onnx

    constants = Constants(file)
    takers: dict[str, list[Any]] = defaultdict(list)
    for node in file.graph.node:
        for name in node.input:
            takers[name].append(node)
    parts: set[str] = set()
    for stored in quantized_in(file.graph, constants):
        parts.update(stored.parts)
        yield _quantized(stored, takers, layers)
    floating = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    for proto in file.graph.initializer:
        if proto.data_type not in floating or not proto.dims or proto.name in parts:
            continue
        uses = list(_uses(proto.name, takers, False))
        texts = [proto.name, *(text for node, _, _ in uses for text in _texts(node))]
        yield Tensor(
            name=proto.name,
            stored=tuple(proto.dims),
            read=constants.reader(proto.name),
            words=_all_words(texts),
            layers=_layers(texts, layers),
            transposed=any(_is_transposed(*use) for use in uses),
            added=any(node.op_type == "Add" for node, _, _ in uses),
        )


def _quantized(stored: Quantized, takers: Mapping[str, list[Any]], layers: int) -> Tensor:
    """A weight by the node that dequantizes it, and those that take what that gives; the weight of
    a node that also multiplies is (out, in)."""
    uses = list(_uses(stored.node.output[0], takers, False)) if stored.is_separate else []
    nodes = [stored.node, *(node for node, _, _ in uses)]
    texts = [stored.parts[0], *(text for node in nodes for text in _texts(node))]
    return Tensor(
        name=stored.parts[0],
        stored=stored.shape,
        read=stored.values,
        words=_all_words(texts),
        layers=_layers(texts, layers),
        transposed=any(_is_transposed(*use) for use in uses),
        quantized=stored,
    )


def _texts(node: Any) -> Iterator[str]:
    """The names of a node, and of the modules that it comes from, which torch's exporter keeps."""
    yield node.name
    yield from (x.value for x in node.metadata_props if x.key.endswith("name_scopes"))
    yield from node.output


def _uses(
    name: str, takers: Mapping[str, list[Any]], transposed: bool
) -> Iterator[tuple[Any, str, bool]]:
    """The nodes that a tensor is a weight of, by which name they take it, and whether it was
    transposed before."""
    for node in takers[name]:
        if node.op_type in PASSING and node.output:
            yield from _uses(node.output[0], takers, transposed != (node.op_type == "Transpose"))
        else:
            yield node, name, transposed


def _is_transposed(node: Any, name: str, transposed: bool) -> bool:
    """Whether a tensor that a product takes is (in, out)."""
    if len(node.input) < 2 or node.input[1] != name:
        return False
    if node.op_type == "Gemm":
        by_rows = any(x.name == "transB" and x.i for x in node.attribute)
        return by_rows == transposed
    return node.op_type == "MatMul" and not transposed


def _layers(texts: list[str], layers: int) -> frozenset[int]:
    numbers = map(layer_number, texts)
    return frozenset(x for x in numbers if x is not None and x < layers)


def _all_words(texts: list[str]) -> frozenset[str]:
    return frozenset().union(*map(words_of, texts))


def words_of(text: str) -> frozenset[str]:
    """The words of a name, each as transformers has it."""
    return frozenset(map(alike, re.split(r"[./:\[\]', +]+", text)))


def alike(word: str) -> str:
    """A word of an exporter as transformers has it."""
    return ALIKE.get(word, word)


def layer_number(text: str) -> int | None:
    """The layer that a name tells."""
    match = re.search(r"(?:layers|h|blocks)[._/](\d+)(?=[._/])", text)
    return int(match[1]) if match else None

"""The attention layer of an exported model, cut out of it, and what it takes and gives."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto, numpy_helper
from onnx.utils import Extractor

SIDE_INPUTS = ("input_ids", "attention_mask", "position_ids", "write_indices", "nonpad_kv_seqlen")
"""What a layer may take besides hidden states and cache: the names that the exporters agree on."""


class LayerError(Exception):
    """The layer cannot be found, or takes something nobody here knows."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """An ONNX file of one attention layer.

    hidden, output: its hidden states before and after. side: the names of SIDE_INPUTS it takes.
    caches: input and output of key and of value, in this order. by_slot: whether a cache is
    (batch, slots, kv_heads * head_dim), as TensorScatter with axis 1 has it, and not (batch,
    kv_heads, slots, head_dim). capacity: slots of its caches, where the graph fixes them.
    """

    path: Path
    hidden: str
    output: str
    side: tuple[str, ...]
    caches: tuple[tuple[str, str], ...]
    by_slot: bool
    capacity: int | None


def cut(whole: Path, out: Path, weights: Mapping[str, np.ndarray]) -> Layer:
    """Write the part of `whole` from the input of q, k and v to the output of o_proj.

    weights: q_proj.weight and o_proj.weight as in the checkpoint, by which the place is found.
    Everything that masks, cos and sin are made of comes along, back to the model's inputs.
    Raises: LayerError if the projections are not there.
    """
    model = onnx.load(str(whole))
    graph = model.graph
    hidden = _projection(graph, weights["q_proj.weight"], "q_proj").input[0]
    output = _projection(graph, weights["o_proj.weight"], "o_proj").output[0]
    width = weights["q_proj.weight"].shape[1]
    for name in (hidden, output):
        _declare(graph, name, width)
    outputs = [output, *(value.name for value in graph.output if _is_cache(value))]
    extractor = Extractor(model)
    needed = _reached(extractor, hidden, outputs)
    inputs = [hidden, *(value.name for value in graph.input if value.name in needed)]
    layer = extractor.extract_model(inputs, outputs)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "layer.onnx"
    onnx.save(layer, str(path))
    return read(path, hidden, output)


def read(path: Path, hidden: str = "hidden_states", output: str = "attention_output") -> Layer:
    """What the layer at `path` takes and gives.

    Raises: LayerError for an input of no known name.
    """
    graph = onnx.load(str(path), load_external_data=False).graph
    before = [value for value in graph.input if _is_cache(value)]
    after = [value for value in graph.output if _is_cache(value)]
    side = [v.name for v in graph.input if v.name != hidden and v not in before]
    for name in side:
        if name not in SIDE_INPUTS:
            raise LayerError(f"the layer takes {name!r}, and nobody here knows what that is")
    shapes = [value.type.tensor_type.shape.dim for value in before]
    by_slot = {len(shape) for shape in shapes} == {3}
    return Layer(
        path=path,
        hidden=hidden,
        output=output,
        side=tuple(side),
        caches=tuple(zip(_key_first(before), _key_first(after), strict=True)),
        by_slot=by_slot,
        capacity=(shapes[0][1 if by_slot else 2].dim_value or None) if shapes else None,
    )


def nodes(path: Path) -> int:
    """How many nodes the graph at `path` has, without constants."""
    graph = onnx.load(str(path), load_external_data=False).graph
    return sum(node.op_type != "Constant" for node in graph.node)


def size(folder: Path) -> int:
    """Bytes of the model's files in a folder: graphs and their external data."""
    return sum(path.stat().st_size for path in folder.iterdir() if ".onnx" in path.name)


def _projection(graph: GraphProto, weight: np.ndarray, name: str) -> NodeProto:
    """The matrix product with `weight` (out, in), alone or as the first of several in one."""
    for tensor in graph.initializer:
        if _begins_with(tensor, weight):
            for node in _consumers(graph, tensor.name):
                return node
    raise LayerError(f"no matrix product has the checkpoint's {name}")


def _begins_with(tensor: TensorProto, weight: np.ndarray) -> bool:
    """Whether the leading rows are `weight`, or the leading columns its transpose."""
    if tensor.data_type != TensorProto.FLOAT or len(tensor.dims) != 2:
        return False
    out, width = weight.shape
    rows, columns = tensor.dims
    if (columns, rows >= out) != (width, True) and (rows, columns >= out) != (width, True):
        return False
    values = numpy_helper.to_array(tensor)
    return np.array_equal(values[:out], weight) or np.array_equal(values[:, :out], weight.T)


def _consumers(graph: GraphProto, name: str) -> Iterator[NodeProto]:
    """The products that take `name` as their second operand, perhaps transposed before."""
    for node in graph.node:
        if node.op_type in ("MatMul", "Gemm") and node.input[1] == name:
            yield node
        elif node.op_type in ("Transpose", "Identity", "Cast") and node.input[0] == name:
            yield from _consumers(graph, node.output[0])


def _declare(graph: GraphProto, name: str, width: int) -> None:
    """Declare that `name` is float32 (batch, sequence, width); extraction needs it."""
    for index, value in enumerate(graph.value_info):
        if value.name == name:
            del graph.value_info[index]
            break
    shape = ("batch", "sequence", width)
    graph.value_info.append(onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))


def _reached(extractor: Extractor, hidden: str, outputs: list[str]) -> set[str]:
    """Every tensor that the outputs depend on, not counting what lies before `hidden`."""
    nodes = extractor._collect_reachable_nodes([hidden], outputs)
    return {name for node in nodes for name in node.input}


def _is_cache(value: ValueInfoProto) -> bool:
    kind = value.type.tensor_type
    named = "key" in value.name or "value" in value.name
    return named and kind.elem_type == TensorProto.FLOAT and len(kind.shape.dim) in (3, 4)


def _key_first(values: list[ValueInfoProto]) -> list[str]:
    """Names with that of the key first; "past_key_values.0.value" is a value."""
    names = [value.name for value in values]
    return sorted(names, key=lambda name: "value" in name.replace("key_values", ""))

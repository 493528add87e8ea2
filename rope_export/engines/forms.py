"""ONNX forms of attention and rotation that TensorRT computes otherwise than they are defined, or
cannot build. Each check looks at one node and returns what is wrong, or nothing.

Sources: what the parser and builder of TensorRT for RTX 1.7.1 were seen to do, and
onnx/docs/Operators.md.
"""

from collections.abc import Callable, Iterator
from typing import Any

import onnx
from onnx import AttributeProto, NodeProto, TensorProto, helper, numpy_helper

from rope_export.onnx_graph import Graph

NARROW: dict[int | None, str] = {TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16"}
ATTENTION_HONOURED = {
    "scale",
    "is_causal",
    "q_num_heads",
    "kv_num_heads",
    "softcap",
    "qk_matmul_output_mode",
    "TRT_decomposable",
}
"""Attributes of Attention that the parser reads; softcap must be 0."""
KEPT = {"Transpose", "Reshape", "Unsqueeze", "Squeeze", "Expand", "Cast", "Identity", "Tile"}
"""Operators whose output has every entry of a cache that is their input."""
PICKED = KEPT | {"Slice", "Split", "Gather"}
"""Operators that take one layer's cache out of a whole."""
SCATTERS = {"TensorScatter", "ScatterND", "ScatterElements"}

EXPORT = "export with lowering 'tensorrt'"
KEY, VALUE, MASK, PAST, NONPAD = 1, 2, 3, 4, 6
"""Places of Attention's inputs."""

Check = Callable[[Graph, NodeProto], str | None]


def wrong(model: onnx.ModelProto) -> Iterator[str]:
    """What is wrong with the model for TensorRT: the node, the rule and the way out, in a line."""
    for graph in Graph.every(model):
        for node in graph.nodes:
            for check in CHECKS.get(node.op_type, ()):
                complaint = check(graph, node)
                if complaint is not None:
                    yield f"{node.op_type} {node.name or node.output[0]!r} {complaint}."


def _in_a_branch(graph: Graph, node: NodeProto) -> str | None:
    if graph.inside is None:
        return None
    return (
        f"lies inside {graph.inside}, where TensorRT's builder fails; keep attention in the main "
        f"graph, with one file for each case"
    )


def _dropped_lengths(graph: Graph, node: NodeProto) -> str | None:
    if not _given(node, NONPAD):
        return None
    return (
        f"takes nonpad_kv_seqlen {node.input[NONPAD]!r}, which TensorRT's parser drops without a "
        f"word: slots that are not filled would be attended to; {EXPORT}, whose mask covers them"
    )


def _past_inputs(graph: Graph, node: NodeProto) -> str | None:
    if not _given(node, PAST) and len([x for x in node.output if x]) < 2:
        return None
    return (
        f"has past inputs or more than one output, and TensorRT's Attention has neither; {EXPORT}, "
        f"which grows the cache outside the operator"
    )


def _unknown_attributes(graph: Graph, node: NodeProto) -> str | None:
    values = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if values.get("softcap"):
        return (
            f"has softcap={values['softcap']:g}, which TensorRT does not take; {EXPORT}, which "
            f"expresses capped scores in matrix products"
        )
    for name in sorted(values.keys() - ATTENTION_HONOURED):
        if name.endswith("_window_size") and values[name] == -1:
            continue
        return f"has {name}={values[name]}, which TensorRT does not take; {EXPORT}"
    return None


def _causal_cache(graph: Graph, node: NodeProto) -> str | None:
    if not _attribute(node, "is_causal"):
        return None
    if _given(node, MASK):
        return f"has a mask and is_causal=1, which TensorRT does not take together; {EXPORT}"
    # Values are looked at too: a cache may hold keys that are rotated after it.
    caches = (_cache_before(graph, node.input[at]) for at in (KEY, VALUE))
    writer = next((name for name in caches if name), None)
    if writer is None:
        return None
    return (
        f"has is_causal=1, which counts from the first key, on keys that {writer!r} made of a "
        f"cache: new tokens would see its oldest entries only; {EXPORT}, whose mask counts slots"
    )


def _cache_before(graph: Graph, name: str) -> str | None:
    """The node that puts new entries behind those of a cache that comes into the graph."""
    producer = graph.producer(name)
    if producer is None:
        return None
    if producer.op_type in SCATTERS:
        return producer.name or producer.op_type
    if producer.op_type == "Concat":
        if _attribute(producer, "axis") in (-1, 3):  # features: halves of a rotated key
            return None
        return (
            producer.name or "Concat"
            if any(_from_outside(graph, x) for x in producer.input)
            else None
        )
    return _cache_before(graph, producer.input[0]) if producer.op_type in KEPT else None


def _from_outside(graph: Graph, name: str) -> bool:
    """Whether a value is an input of the graph, or a part of one."""
    producer = graph.producer(name)
    if producer is None:
        return graph.comes_in(name)
    return producer.op_type in PICKED and _from_outside(graph, producer.input[0])


def _overflowing_mask(graph: Graph, node: NodeProto) -> str | None:
    if not _given(node, MASK) or graph.type_of(node.input[MASK]) == TensorProto.BOOL:
        return None
    element = graph.type_of(node.input[0]) or graph.type_of(node.input[MASK])
    return _too_low(graph, node.input[MASK], element)


def _overflowing_scores(graph: Graph, node: NodeProto) -> str | None:
    """What `_overflowing_mask` refuses, where a mask is added to a matrix product of scores."""
    producer = graph.producer(node.input[0])
    while producer is not None and producer.op_type == "Cast":
        producer = graph.producer(producer.input[0])
    if producer is None or producer.op_type != "Add":
        return None
    element = graph.type_of(producer.output[0])
    complaints = (_too_low(graph, name, element) for name in producer.input)
    return next((complaint for complaint in complaints if complaint), None)


def _too_low(graph: Graph, mask: str, element: int | None) -> str | None:
    """Whether a mask holds numbers to which no score can be added."""
    if element is None or element not in (TensorProto.FLOAT, *NARROW):
        return None
    import ml_dtypes

    lowest = float(ml_dtypes.finfo(helper.tensor_dtype_to_np_dtype(element)).min)
    for tensor in graph.constants_before(mask, stop={"MatMul", "Gemm"}):
        if tensor.data_type not in (TensorProto.FLOAT, TensorProto.DOUBLE, *NARROW):
            continue
        value = float(numpy_helper.to_array(tensor).astype("float64").min(initial=0.0))
        if value < lowest / 2:
            return (
                f"adds a mask with {value:.3g}, below half the lowest number ({lowest / 2:.3g}): "
                f"with a score or another mask added it overflows to -inf, and a row of those is "
                f"NaN; use a finite number above that, or {EXPORT}"
            )
    return None


def _narrow_angles(graph: Graph, node: NodeProto) -> str | None:
    kinds = map(graph.type_of, sorted(graph.values_before(node.input[0])))
    narrow = [NARROW[kind] for kind in kinds if kind in NARROW]
    if not narrow:
        return None
    return (
        f"takes an angle that went through {narrow[0]}, which has no odd position above "
        f"2,048 or 256; cast int64 positions to float32, and cos and sin last; or {EXPORT}"
    )


def _multiplied_angles(graph: Graph, node: NodeProto) -> str | None:
    products = [
        producer
        for producer in map(graph.producer, graph.values_before(node.input[0]))
        if producer is not None and producer.op_type in ("MatMul", "Gemm", "Einsum")
    ]
    if not products:
        return None
    first = products[0]
    return (
        f"takes an angle that {first.op_type} {first.name or first.output[0]!r} makes, which TF32 "
        f"puts off by 0.5 at position 2,048; multiply element by element, or {EXPORT}"
    )


def _scattered_cache(graph: Graph, node: NodeProto) -> str | None:
    cache = node.input[0]
    shape = graph.shape_of(cache)
    if not graph.comes_in(cache) or not graph.goes_out(node.output[0]):
        return (
            f"writes into {cache!r}, but TensorRT updates a cache only that is an input of the "
            f"graph, into one of its outputs; {EXPORT}"
        )
    if len(shape) != 4 or _attribute(node, "axis", -2) not in (-2, 2):
        return (
            f"writes into {cache!r} of {len(shape)} axes along axis {_attribute(node, 'axis', -2)}"
            f"; TensorRT's cache is (batch, heads, capacity, features), written along the third; "
            f"use cache 'growing'"
        )
    mode = _attribute(node, "mode", b"linear")
    if mode != b"linear":
        return f"has mode {mode.decode()!r}; TensorRT writes linear only; {EXPORT}"
    return None


def _grouped(graph: Graph, node: NodeProto) -> str | None:
    return f"is onnxruntime's own operator, which TensorRT does not take; {EXPORT}"


def _given(node: NodeProto, at: int) -> bool:
    return len(node.input) > at and node.input[at] != ""


def _attribute(node: NodeProto, name: str, default: Any = 0) -> Any:
    named = [a for a in node.attribute if a.name == name and a.type != AttributeProto.UNDEFINED]
    return helper.get_attribute_value(named[0]) if named else default


CHECKS: dict[str, tuple[Check, ...]] = {
    "Attention": (
        _in_a_branch,
        _dropped_lengths,
        _past_inputs,
        _unknown_attributes,
        _causal_cache,
        _overflowing_mask,
    ),
    "Softmax": (_overflowing_scores,),
    "Cos": (_narrow_angles, _multiplied_angles),
    "Sin": (_narrow_angles, _multiplied_angles),
    "TensorScatter": (_scattered_cache,),
    "GroupQueryAttention": (_grouped,),
}

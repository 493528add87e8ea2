"""Which files an ONNX model keeps its weights in, read without the onnx package.

A session needs neither torch nor onnx, but must not open a model that reads outside its folder.
Only the few fields of the format that lead to a tensor's external data are walked.
Source: onnx/onnx.proto (ModelProto, GraphProto, NodeProto, AttributeProto, TensorProto) and the
protobuf wire format.
"""

from collections.abc import Iterator

# Field numbers that lead from a message to the messages below it that may hold tensors.
MODEL = {7: "graph", 25: "function"}
GRAPH = {1: "node", 5: "tensor", 15: "sparse"}
FUNCTION = {7: "node", 11: "attribute"}
NODE = {5: "attribute"}
ATTRIBUTE = {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"}
SPARSE = {1: "tensor", 2: "tensor"}
TENSOR = {13: "entry"}
BELOW = {
    "model": MODEL,
    "graph": GRAPH,
    "function": FUNCTION,
    "node": NODE,
    "attribute": ATTRIBUTE,
    "sparse": SPARSE,
    "tensor": TENSOR,
}


DEEPEST = 100
"""Levels of messages within one another; protobuf's own parsers stop there as well."""


def locations(model: bytes) -> set[str]:
    """The `location` of every tensor with external data in a serialized ModelProto.

    Raises: ValueError if the bytes are not a protobuf message, or nested beyond its limit.
    """
    return set(_walk(memoryview(model), "model", DEEPEST))


def _walk(message: memoryview, kind: str, left: int) -> Iterator[str]:
    """The locations within one message. left: how many levels may lie below."""
    if not left:
        raise ValueError("its graphs are nested too deeply")
    if kind == "entry":
        entry = {number: bytes(value) for number, value in _fields(message)}
        if entry.get(1) == b"location":
            yield entry.get(2, b"").decode("utf-8", errors="replace")
        return
    below = BELOW[kind]
    for number, value in _fields(message):
        if number in below:
            yield from _walk(value, below[number], left - 1)


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Field number and bytes of each length-delimited field; the others are passed over."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        wire = key & 7
        if wire == 0:
            _, at = _varint(message, at)
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        elif wire == 2:
            size, at = _varint(message, at)
            if at + size > len(message):
                raise ValueError("a field is longer than its message")
            yield key >> 3, message[at : at + size]
            at += size
        else:
            raise ValueError(f"wire type {wire} is not used by ONNX")
    if at != len(message):
        raise ValueError("the message is cut short")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(message) or shift > 63:
            raise ValueError("a number is cut short")
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at

"""The messages of a serialized ONNX model, walked without the onnx package.

A session needs neither torch nor onnx. Only the few fields of the format that lead to nodes and to
tensors are walked.
Source: onnx/onnx.proto (ModelProto, GraphProto, FunctionProto, NodeProto, AttributeProto,
TensorProto, SparseTensorProto) and the protobuf wire format.
"""

from collections.abc import Iterator, Mapping
from typing import TypeAlias

Value: TypeAlias = "memoryview | int"
"""What a field holds: bytes, or a number where it is written as one."""

BELOW: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": dict.fromkeys((5, 10), "tensor")
    | dict.fromkeys((6, 11), "graph")
    | dict.fromkeys((22, 23), "sparse"),
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
    "entry": {},
}
"""The fields of each kind of message that lead to those below it, by their numbers."""

DEEPEST = 100
"""Levels of messages within one another; protobuf's own parsers stop there as well."""


def messages(model: bytes) -> Iterator[tuple[str, memoryview]]:
    """Every message of a serialized ModelProto that leads to nodes or tensors, with its kind.

    Raises: ValueError if the bytes are not a protobuf message, or nested beyond its limit.
    """
    return _walk(memoryview(model), "model", DEEPEST)


def _walk(message: memoryview, kind: str, left: int) -> Iterator[tuple[str, memoryview]]:
    """left: how many levels may lie below."""
    if not left:
        raise ValueError("its graphs are nested too deeply")
    yield kind, message
    below = BELOW[kind]
    for number, value in fields(message) if below else ():
        if number in below and isinstance(value, memoryview):
            yield from _walk(value, below[number], left - 1)


def fields(message: memoryview) -> Iterator[tuple[int, Value]]:
    """Number and value of each field that is a number or has a length; others are passed over.

    Raises: ValueError if the bytes are not a protobuf message.
    """
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        wire = key & 7
        if wire == 0:
            value, at = _varint(message, at)
            yield key >> 3, value
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

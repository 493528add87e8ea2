"""Which operators an ONNX model has, and whether it computes in float64, without the onnx package.

A runtime tells by it what it cannot run before it is asked to.
"""

from dataclasses import dataclass

from rope_export.artifacts import wire

DOUBLE = 11
"""TensorProto.DOUBLE."""


@dataclass(frozen=True)
class Operators:
    """names: of the operators, with their domain where it is not ONNX's own, such as
    "com.microsoft.MatMulNBits". float64: whether a tensor is made in float64."""

    names: frozenset[str]
    float64: bool


def operators_of(model: bytes) -> Operators:
    """What a serialized ModelProto computes with.

    Raises: ValueError if the bytes are not a protobuf message, or nested beyond its limit.
    """
    names, float64 = set(), False
    for kind, message in wire.messages(model):
        if kind == "node":
            facts = {n: x for n, x in wire.fields(message) if n in (4, 7)}  # op_type, domain
            domain, name = (_text(facts.get(number)) for number in (7, 4))
            names.add(f"{domain}.{name}" if domain not in ("", "ai.onnx") else name)
        elif kind == "tensor":
            float64 |= (2, DOUBLE) in wire.fields(message)  # data_type
        elif kind == "attribute":
            facts = {n: x for n, x in wire.fields(message) if n in (1, 3)}  # name, i
            float64 |= _text(facts.get(1)) == "to" and facts.get(3) == DOUBLE  # a Cast's
    return Operators(frozenset(names), float64)


def _text(value: "wire.Value | None") -> str:
    return bytes(value).decode("utf-8", "replace") if isinstance(value, memoryview) else ""

"""Which files an ONNX model keeps its weights in, read without the onnx package.

A session must not open a model that reads outside its folder.
"""

from rope_export.artifacts import wire


def locations(model: bytes) -> set[str]:
    """The `location` of every tensor with external data in a serialized ModelProto.

    Raises: ValueError if the bytes are not a protobuf message, or nested beyond its limit.
    """
    entries = (dict(wire.fields(x)) for kind, x in wire.messages(model) if kind == "entry")
    return {_text(x.get(2, b"")) for x in entries if _text(x.get(1, b"")) == "location"}


def _text(value: "wire.Value | bytes") -> str:
    """The text of a field; one that is a number, as no writer has it, is empty."""
    return "" if isinstance(value, int) else bytes(value).decode("utf-8", errors="replace")

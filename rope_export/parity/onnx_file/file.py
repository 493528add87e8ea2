"""An ONNX file that somebody else made, read once; nothing of it is run outside of onnxruntime."""

import mmap
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from rope_export import paths
from rope_export.artifacts import contents, external_data
from rope_export.errors import ArtifactError, UnavailableError, extra

ROUNDED = (
    "DynamicQuantizeLinear", "QuantizeLinear", "MatMulInteger", "ConvInteger", "QLinearMatMul",
    "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "QAttention", "QGemm",
)  # fmt: skip
"""Operators that round what is multiplied with a weight to scales that have no bounds here."""

UNREAD = ("QMoE", "MatMulBnb4", "MatMulFpQ4", "GemmFloat8")
"""Operators of quantized weights that are not read."""

QUANTIZED = ("MatMulNBits", "GatherBlockQuantized", "DequantizeLinear")
"""Operators of quantized weights that are read, in the graph itself."""

LARGEST = 2**31
"""Bytes of a model beside its external data; protobuf takes no more."""


@dataclass(frozen=True, kw_only=True)
class Value:
    """An input or output of the file. shape: sizes, names of dynamic axes, or none where the file
    does not tell; none as a whole where it tells no shape."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] | None

    @property
    def sizes(self) -> tuple[int | None, int | None]:
        """Its first two axes, such as batch and sequence, where they always have one size."""
        first = (*(self.shape or ()), None, None)[:2]
        batch, sequence = (x if isinstance(x, int) else None for x in first)
        return batch, sequence

    def __str__(self) -> str:
        axes = (
            "?"
            if self.shape is None
            else ", ".join("?" if x is None else str(x) for x in self.shape)
        )
        return f"{self.name} {self.dtype}({axes})"


@dataclass(frozen=True, kw_only=True, eq=False)
class OnnxFile:
    """path: of the file. model: its bytes. data: of the files that it keeps weights in, by the
    locations in the model. graph: its graph, as onnx has it, without external data. inputs: those
    that must be fed."""

    path: Path
    model: bytes
    data: Mapping[str, mmap.mmap | bytes]
    graph: Any
    producer: str
    opset: int
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]

    @classmethod
    def read(cls, path: Path) -> "OnnxFile":
        """Raises: ArtifactError for what is no ONNX model, or keeps weights outside of its folder;
        UnavailableError for operators that cannot be judged."""
        with extra("export", "verifying an ONNX file"):
            import onnx
        model = contents.read(path, LARGEST)
        try:
            locations = external_data.locations(model)
            proto = onnx.load_model_from_string(model)
        except Exception as error:  # protobuf's own kind of error is not public
            raise ArtifactError(f"{path}: is not an ONNX model ({error}).") from error
        if not proto.graph.output:
            raise ArtifactError(f"{path}: is not an ONNX model (its graph has no output).")
        inner = {x.op_type for graph in _inner_graphs(proto) for x in graph.node}
        _check_operators(path, inner | {node.op_type for node in proto.graph.node})
        _check_inner(path, inner)
        weights = {tensor.name for tensor in proto.graph.initializer}
        return cls(
            path=path,
            model=model,
            data={name: _external(path, name) for name in sorted(locations)},
            graph=proto.graph,
            producer=f"{proto.producer_name} {proto.producer_version}".strip(),
            opset=next((x.version for x in proto.opset_import if x.domain in ("", "ai.onnx")), 0),
            inputs=tuple(_value(x) for x in proto.graph.input if x.name not in weights),
            outputs=tuple(_value(x) for x in proto.graph.output),
        )


def attribute(node: Any, name: str, default: Any) -> Any:
    """The whole number that a node has under a name."""
    return next((x.i for x in node.attribute if x.name == name), default)


def _check_operators(path: Path, used: set[str]) -> None:
    """Raises: UnavailableError for weights that are not read, and activations that are rounded."""
    for name in UNREAD:
        if name in used:
            raise UnavailableError(
                f"{path}: has weights that are quantized in a way that is not read ({name}). "
                f"Verify the file in float32 or float16."
            )
    for name in ROUNDED:
        if name in used:
            raise UnavailableError(
                f"{path}: rounds activations ({name}), for which there are no bounds. Verify the "
                f"file with its weights alone quantized, or in float32 or float16."
            )


def _check_inner(path: Path, used: set[str]) -> None:
    """Raises: UnavailableError for quantized weights where they are not looked for."""
    for name in QUANTIZED:
        if name in used:
            raise UnavailableError(
                f"{path}: has quantized weights ({name}) in a function or in a branch of a "
                f"condition, where they are not read. Inline it (onnx.inliner), or verify the file "
                f"in float32 or float16."
            )


def _inner_graphs(proto: Any) -> Iterator[Any]:
    """The functions of a model, and the graphs that nodes have."""
    open_ = [proto.graph, *proto.functions]
    yield from proto.functions
    while open_:
        for node in open_.pop().node:
            for one in node.attribute:
                graphs = [*one.graphs, *([one.g] if one.HasField("g") else ())]
                yield from graphs
                open_ += graphs


def _external(path: Path, location: str) -> mmap.mmap | bytes:
    """The bytes of a file beside the model.

    Raises: ArtifactError for a location that leads out of its folder.
    """
    pure, folder = PurePosixPath(location), path.parent
    place = folder / location
    inside = not pure.is_absolute() and ".." not in pure.parts and "\\" not in location
    if inside and len(pure.parts) > 1:
        root = os.path.realpath(folder)
        inside = os.path.commonpath([root, os.path.realpath(place.parent)]) == root
    if not inside or not pure.parts:
        raise ArtifactError(
            f"{path}: keeps weights in {paths.shown(location)!r}, which leads out of its folder; "
            f"external data must lie beside the model."
        )
    return contents.mapped(place)


def _value(value: Any) -> Value:
    import onnx

    tensor = value.type.tensor_type
    shape = tensor.shape.dim if tensor.HasField("shape") else None
    name = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    return Value(
        name=value.name,
        dtype={"float": "float32", "double": "float64"}.get(name, name),
        shape=None if shape is None else tuple(_axis(x) for x in shape),
    )


def _axis(dim: Any) -> int | str | None:
    if dim.HasField("dim_value"):
        return int(dim.dim_value)
    return dim.dim_param or None

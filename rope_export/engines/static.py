"""An ONNX file with some of its dynamic axes fixed to a size.

TensorRT updates a cache in place only where its capacity is one number; artifacts keep it open.
"""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rope_export.artifacts import external_data
from rope_export.errors import InputError, extra

if TYPE_CHECKING:
    from onnx import GraphProto, TensorShapeProto


def fixed(model: Path, sizes: Mapping[str, int], to: Path) -> None:
    """Write `model` to `to` with each axis named in `sizes` as that number, wherever it stands.

    The weights stay as they are; a file of their own is copied beside `to`.
    Raises: InputError if no input has an axis of that name.
    """
    with extra("export", "fixing an axis of an ONNX file"):
        import onnx

        from rope_export.onnx_graph import Graph

    loaded = onnx.load(str(model), load_external_data=False)
    inputs = {dim.dim_param for shape in _shapes(loaded.graph, "input") for dim in shape.dim}
    for name in sizes:
        if name not in inputs:
            raise InputError(f"{model}: no input has an axis {name!r} that could be fixed.")
    for graph in Graph.every(loaded):
        for field in ("input", "output", "value_info"):
            for shape in _shapes(graph.proto, field):
                for dim in shape.dim:
                    if dim.dim_param in sizes:
                        dim.dim_value = sizes[dim.dim_param]
    for name in external_data.locations(model.read_bytes()):
        shutil.copyfile(model.parent / name, to.parent / name)
    to.write_bytes(loaded.SerializeToString())


def _shapes(graph: "GraphProto", field: str) -> "Iterator[TensorShapeProto]":
    for value in getattr(graph, field):
        yield value.type.tensor_type.shape

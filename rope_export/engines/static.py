"""An ONNX file with some of its dynamic axes fixed to a size.

TensorRT updates a cache in place only where its capacity is one number; artifacts keep it open.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rope_export.artifacts import external_data
from rope_export.errors import InputError, extra

if TYPE_CHECKING:
    from onnx_ir import Value


def fix_axes(model: Path, sizes: Mapping[str, int], to: Path) -> None:
    """Write `model` to `to` with each axis named in `sizes` as that number, wherever it stands.

    The weights stay as they are; a file of their own is linked beside `to`, or copied where that
    cannot be.
    Raises: InputError if no input has an axis of that name.
    """
    with extra("export", "fixing an axis of an ONNX file"):
        import onnx_ir as ir

    loaded = ir.load(model)
    names = {axis for value in loaded.graph.inputs for axis in _axes(value)}
    for name in sizes:
        if name not in names:
            raise InputError(f"{model}: no input has an axis {name!r} that could be fixed.")
    for graph in loaded.graphs():
        for value in (*graph.inputs, *(value for node in graph for value in node.outputs)):
            if value.shape is not None and not sizes.keys().isdisjoint(_axes(value)):
                value.shape = ir.Shape(
                    [axis if axis is None else sizes.get(str(axis), axis) for axis in _axes(value)]
                )
    for location in external_data.locations(model.read_bytes()):
        try:
            (to.parent / location).hardlink_to(model.parent / location)
        except OSError:  # another file system, or one that has no links
            shutil.copyfile(model.parent / location, to.parent / location)
    ir.save(loaded, to)


def _axes(value: "Value") -> list[int | str | None]:
    """Sizes and names of a value's axes."""
    shape = value.shape or ()
    return [axis if isinstance(axis, int) else axis.value for axis in shape]

"""The ONNX file of an artifact: its metadata, how it is written, how it is checked."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import ClearMetadataAndDocStringPass

from rope_export.artifacts.contents import DATA, MODEL
from rope_export.artifacts.decoder import DecoderManifest
from rope_export.artifacts.manifest import Manifest
from rope_export.errors import RopeExportError
from rope_export.exporter.taps import describe_taps, taps_of
from rope_export.interface import Interface, TensorType
from rope_export.interface.base import TOTAL

EXTERNAL_ABOVE = 100_000_000
"""Bytes of weights above which they lie in a file of their own."""


def describe(model: ir.Model, manifest: Manifest) -> None:
    """Writes into the model what it is, and removes metadata of the machine that made it."""
    _clear(model)
    model.producer_name = "rope_export"
    model.producer_version = manifest.versions["rope_export"]
    model.graph.name = "rotary_attention"
    spec = dict(manifest.spec)
    model.metadata_props.update(
        {
            "rope_export.lowering": manifest.lowering,
            "rope_export.cache": manifest.cache,
            "rope_export.rope": _listed(spec.pop("rope") or {"rope_type": None}),
            "rope_export.attention.layer": _listed(spec),
            "rope_export.source": _listed(manifest.source),
        }
    )
    describe_taps(model, taps_of(model))


def describe_decoder(model: ir.Model, manifest: DecoderManifest) -> None:
    """As `describe`, for a whole decoder."""
    _clear(model)
    model.producer_name = "rope_export"
    model.producer_version = manifest.versions["rope_export"]
    model.graph.name = "decoder"
    facts = {
        "rope_export.lowering": manifest.lowering,
        "rope_export.cache": manifest.cache,
        "rope_export.source": _listed(manifest.source),
    }
    facts |= {f"rope_export.spec.{at}": _listed(spec) for at, spec in enumerate(manifest.specs)}
    model.metadata_props.update(facts)
    describe_taps(model, taps_of(model))


def _clear(model: ir.Model) -> None:
    """Removes metadata of the machine, and names the axis of all slots as the interface does:
    torch's sum has its terms in the order in which it met them."""
    ClearMetadataAndDocStringPass()(model)
    terms = sorted(TOTAL.split())
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        for shape in (value.shape for value in node.outputs if value.shape is not None):
            for at, axis in enumerate(shape):
                if isinstance(axis, ir.SymbolicDim) and sorted((axis.value or "").split()) == terms:
                    shape[at] = TOTAL


def _listed(facts: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in facts.items())


def write_model(model: ir.Model, folder: Path) -> None:
    """Writes the model into a folder, large weights beside it."""
    size = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value)
    external = DATA if size > EXTERNAL_ABOVE else None
    ir.save(model, folder / MODEL, external_data=external)


def check_model(path: Path, interface: Interface) -> None:
    """Raises: RopeExportError if onnx finds the file invalid or its tensors are not those of the
    interface."""
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise RopeExportError(f"the exported model is not valid: {error}") from error
    graph = onnx.load(str(path), load_external_data=False).graph
    for expected, values in ((interface.inputs, graph.input), (interface.outputs, graph.output)):
        declared = tuple(map(_declared, values))
        if declared != expected:
            raise RopeExportError(
                f"the exported model has {[str(t) for t in declared]}, "
                f"its interface is {[str(t) for t in expected]}."
            )


def _declared(value: onnx.ValueInfoProto) -> TensorType:
    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    shape = tuple(d.dim_param or d.dim_value for d in tensor.shape.dim)
    return TensorType(name=value.name, dtype=dtype, shape=shape)

"""rope-export inspect: what an artifact, an engine or an ONNX file is."""

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from rope_export import paths
from rope_export.artifacts.folder import Folder, open_folder
from rope_export.artifacts.manifest import ModelFacts
from rope_export.cli import output
from rope_export.cli.inspected import rows
from rope_export.engines.plan import Engine
from rope_export.errors import ArtifactError, extra
from rope_export.typed_json import plain


def inspect_path(
    path: Annotated[
        Path,
        typer.Argument(metavar="PATH", help="An artifact, an engine or an .onnx file."),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Show what an artifact or an engine is and its evidence, or what an ONNX file holds."""
    if paths.readable(path).is_file():
        facts = _model(path)
    else:
        folder = open_folder(path)
        facts = {**_facts(path, folder), "evidence": folder.evidence}
        output.warn(folder.warnings)
    if as_json:
        output.print_json(facts)
        return 0
    grid = Table(show_header=False, box=None, pad_edge=False)
    for name, text in rows(facts):
        grid.add_row(name, text)
    output.out().print(grid)
    return 0


def _facts(path: Path, folder: Folder) -> dict[str, Any]:
    """The facts of an artifact, or of an engine and in short of its artifact."""
    if not isinstance(folder, Engine):
        return {"artifact": str(path), **manifest_facts(folder.manifest)}
    names = ("kind", "lowering", "dtype", "cache", "padding", "source")
    manifest = folder.manifest
    origin = {name: getattr(manifest, name) for name in names if hasattr(manifest, name)}
    return {"engine folder": str(path), **plain(folder.facts), "built from": origin}


def manifest_facts(manifest: ModelFacts) -> dict[str, Any]:
    """A manifest as JSON prints it, with the inputs and outputs of its interface."""
    facts: dict[str, Any] = plain(manifest)
    return facts | {name: facts["interface"][name] for name in ("inputs", "outputs")}


def _model(path: Path) -> dict[str, Any]:
    with extra("export", "inspecting an ONNX file"):
        import onnx
    try:
        model = onnx.load_model_from_string(path.read_bytes())
    except Exception as error:  # protobuf's own kind of error is not public
        raise ArtifactError(f"{path}: is not an ONNX model ({error}).") from error
    operators = Counter(f"{node.domain or 'ai.onnx'}:{node.op_type}" for node in model.graph.node)
    return {
        "model": str(path),
        "producer": f"{model.producer_name} {model.producer_version}".strip(),
        "opset": {o.domain or "ai.onnx": o.version for o in model.opset_import},
        "metadata": {entry.key: entry.value for entry in model.metadata_props},
        "inputs": [_tensor(v) for v in model.graph.input],
        "outputs": [_tensor(v) for v in model.graph.output],
        "operators": dict(operators.most_common()),
        "parameters": sum(_size(t.dims) for t in model.graph.initializer),
    }


def _tensor(value: Any) -> dict[str, Any]:
    import onnx

    tensor = value.type.tensor_type
    return {
        "name": value.name,
        "dtype": onnx.TensorProto.DataType.Name(tensor.elem_type).lower(),
        "shape": [d.dim_param or d.dim_value for d in tensor.shape.dim],
    }


def _size(dims: Any) -> int:
    total = 1
    for dim in dims:
        total *= dim
    return total

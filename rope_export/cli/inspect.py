"""rope-export inspect: what an artifact or an ONNX file is."""

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from rope_export.artifact import Artifact
from rope_export.cli import output
from rope_export.errors import ArtifactError, extra


def inspect(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="An artifact or an .onnx file.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Show an artifact's facts, tensors and evidence, or an ONNX file's operators and tensors."""
    if path.is_file():
        facts = _model(path)
    else:
        artifact = Artifact.open(path)
        evidence = artifact.evidence
        facts = {"artifact": str(path), **artifact.manifest.to_json(), "evidence": evidence}
    if as_json:
        output.print_json(facts)
        return 0
    grid = Table(show_header=False, box=None, pad_edge=False)
    for name, value in facts.items():
        grid.add_row(name, escape(_text(name, value)))
    output.out().print(grid)
    return 0


def _model(path: Path) -> dict[str, Any]:
    with extra("export", "inspecting an ONNX file"):
        import onnx
    try:
        model = onnx.load(str(path), load_external_data=False)
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


def _text(name: str, value: Any) -> str:
    """A fact as a person reads it."""
    if name in ("inputs", "outputs"):
        return "\n".join(f"{t['name']} {t['dtype']}{tuple(t['shape'])}" for t in value)
    if name == "weights":
        return "\n".join(
            f"{key} from {facts['source_tensor']}, sha256 {facts['sha256'][:12]}…"
            for key, facts in value.items()
        )
    if name == "evidence":
        parity = value.get("parity")
        if not parity:
            return "not verified yet"
        return (
            f"{parity['status']}: {parity['rows']} rows, {parity['failed']} failed, weights "
            + (parity["weights"])
        )
    if isinstance(value, dict):
        return "\n".join(f"{key}: {part}" for key, part in value.items())
    return str(value)

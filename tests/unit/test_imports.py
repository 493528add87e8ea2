"""Imports go one way, and heavy packages are imported only where they belong."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import rope_export

PACKAGE = Path(rope_export.__file__).parent
ORDER = [
    {"errors", "version", "discovery"},
    {"paths", "arrays", "gpu"},
    {"rope"},
    {"spec"},
    {"interface", "quantization", "config_reader"},
    {"artifacts"},
    {"engines"},
    {"runtimes", "sessions"},
    {"attention"},
    {"lowerings", "checkpoints"},
    {"exporter"},
    {"parity"},
    {"bench"},
    {"cli"},
]
"""Each part may import at module level from its own row and those above; runtimes open eager
and read weights inside functions."""

TORCH = {"attention", "rope", "lowerings", "checkpoints", "exporter", "parity", "bench"}


READ_ONNX = {"engines/forms.py", "engines/graph.py"}
"""Imported inside functions alone: an engine runs without onnx."""


def module_level(path: Path) -> Iterator[str]:
    """Names imported when the file is imported, type checking aside."""

    def walk(body: list[ast.stmt]) -> Iterator[str]:
        for node in body:
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield node.module or ""
                if node.module == "rope_export":
                    yield from (f"rope_export.{alias.name}" for alias in node.names)
            elif isinstance(node, ast.With) or (
                isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.unparse(node.test)
            ):
                yield from walk(node.body)

    return walk(ast.parse(path.read_text(encoding="utf-8")).body)


FILES = [p for p in sorted(PACKAGE.rglob("*.py")) if p != PACKAGE / "__init__.py"]


def part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    ranks = {name: rank for rank, names in enumerate(ORDER) for name in names}
    for name in module_level(path):
        if name.startswith("rope_export."):
            other = name.split(".")[1]
            if other in ranks:
                assert ranks[other] <= ranks[part(path)], f"{path.name} imports {name}"
            reader = name.replace(".", "/").removeprefix("rope_export/") + ".py"
            assert reader not in READ_ONNX or str(path.relative_to(PACKAGE)) in READ_ONNX


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_heavy_packages_are_imported_where_they_belong(path: Path) -> None:
    tops = {name.partition(".")[0] for name in module_level(path)}
    assert not tops & {"transformers", "onnxruntime", "huggingface_hub"}
    assert not tops & {"tensorrt", "tensorrt_rtx"}
    if part(path) not in TORCH:
        own = {"onnx"} if str(path.relative_to(PACKAGE)) in READ_ONNX else set()
        assert not tops & {"torch", "onnx", "onnx_ir", "safetensors"} - own


def test_public_names_are_the_documented_ones() -> None:
    names = "Artifact AttentionSpec RopeExportError RotaryAttention"
    calls = "build_engine export open_session verify"
    assert sorted(rope_export.__all__) == sorted(f"{names} {calls}".split())
    for name in rope_export.__all__:
        assert getattr(rope_export, name).__doc__
    with pytest.raises(AttributeError, match="nothing"):
        rope_export.nothing  # noqa: B018

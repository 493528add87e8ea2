"""Imports go one way, and heavy packages are imported only where they belong."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grimp
import pytest

import rope_export

PACKAGE = Path(rope_export.__file__).parent
PYPROJECT = PACKAGE.parent / "pyproject.toml"

TORCH = {"attention", "rope", "lowerings", "checkpoints", "exporter", "reading", "decoder"}
TORCH |= {"parity", "bench", "fuzz"}


READ_ONNX = {"engines/forms.py", "onnx_graph.py"}
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


def test_imports_go_one_way() -> None:
    """The contracts of pyproject.toml: layers, and no circle at any depth of the package."""
    command = [Path(sys.executable).with_name("lint-imports"), PYPROJECT, "--no-cache"]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=PACKAGE.parent)
    assert ran.returncode == 0, ran.stdout


def test_no_module_imports_itself_by_way_of_others() -> None:
    """Imports inside functions count, those for type checking do not; a package's own __init__ is a
    module like the others, which the contracts of import-linter leave out."""
    graph = grimp.build_graph("rope_export", exclude_type_checking_imports=True, cache_dir=None)
    below = {module: graph.find_upstream_modules(module) for module in graph.modules}
    for module in sorted(below):
        circle = {other for other in below[module] if module in below[other]}
        assert not circle, f"{module}: {sorted(circle)}"


@pytest.mark.parametrize("path", sorted(READ_ONNX))
def test_readers_of_onnx_are_imported_inside_functions(path: str) -> None:
    module = f"rope_export.{path.removesuffix('.py').replace('/', '.')}"
    for other in FILES:
        if str(other.relative_to(PACKAGE)) not in READ_ONNX:
            assert module not in set(module_level(other)), other


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
    calls = "build_engine export export_decoder open_session verify"
    assert sorted(rope_export.__all__) == sorted(f"{names} {calls}".split())
    for name in rope_export.__all__:
        assert getattr(rope_export, name).__doc__
    with pytest.raises(AttributeError, match="nothing"):
        rope_export.nothing  # noqa: B018

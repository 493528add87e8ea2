"""Files that can be read in one go, whose names and functions do not get in each other's way."""

import ast
import statistics
from pathlib import Path

import rope_export

PACKAGE = Path(rope_export.__file__).parent
FILES = {str(path.relative_to(PACKAGE)): path for path in sorted(PACKAGE.rglob("*.py"))}
LONGEST, MEDIAN = 350, 130
LOGIC = {"__init__.py"}
"""Packages whose __init__ does more than re-export: this one loads the public names when used."""


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def test_no_file_is_longer_than_can_be_read_in_one_go() -> None:
    long = {name for name, path in FILES.items() if lines(path) > LONGEST}
    assert not long
    assert statistics.median(map(lines, FILES.values())) <= MEDIAN


def test_no_function_is_called_like_its_module() -> None:
    """`from package import name` would mean one or the other by the order of imports."""
    alike = set()
    for name, path in FILES.items():
        module = path.parent.name if path.stem == "__init__" else path.stem
        functions = {node.name for node in body(path) if isinstance(node, ast.FunctionDef)}
        alike |= {name} if module in functions else set()
    assert not alike


def test_an_init_only_re_exports() -> None:
    more = {
        name
        for name, path in FILES.items()
        if path.stem == "__init__" and not all(map(re_exports, body(path)))
    }
    assert more <= LOGIC


def body(path: Path) -> list[ast.stmt]:
    return ast.parse(path.read_text(encoding="utf-8")).body


def re_exports(node: ast.stmt) -> bool:
    """Whether a statement is a docstring, an import, or the list of the names."""
    if isinstance(node, ast.With):  # says which extra is missing
        return all(isinstance(inner, ast.ImportFrom) for inner in node.body)
    if isinstance(node, ast.Assign):
        return ast.unparse(node.targets[0]) == "__all__"
    text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return text or isinstance(node, ast.Import | ast.ImportFrom)

"""What the code of transformers' layers says of the values that they take and give; annotations do
not tell, which other classes are inherited with."""

import ast
import inspect
import textwrap
from typing import Any

from torch import nn


def results_of(layer: nn.Module, path: str) -> int:
    """How many values a layer of transformers takes from its attention at `path`: 1 for a tensor
    that is no tuple."""
    outer, _, name = path.rpartition(".")
    owner = layer.get_submodule(outer) if outer else layer
    tree = _forward(owner)
    calls = [node for node in ast.walk(tree) if _is_call_of(node, name)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and node.value in calls:
            return 2
        if isinstance(node, ast.Assign) and node.value in calls:
            target = node.targets[0]
            if isinstance(target, ast.Tuple):
                return len(target.elts)
            return 2 if _is_indexed(tree, ast.unparse(target)) else 1
    return 1


def _is_call_of(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) == f"self.{name}"


def _is_indexed(tree: ast.AST, name: str) -> bool:
    """Whether a variable's parts are taken: by an index, or all by their number."""
    return any(
        (isinstance(node, ast.Subscript) and ast.unparse(node.value) == name)
        or (
            isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Tuple)
            and ast.unparse(node.value) == name
        )
        for node in ast.walk(tree)
    )


def gives_tuple(layer: nn.Module) -> bool:
    """Whether a layer's forward returns a tuple, and not the hidden states alone."""
    tree = _forward(layer)
    returned = [x.value for x in ast.walk(tree) if isinstance(x, ast.Return) and x.value]
    names = {ast.unparse(x) for x in returned}
    made: list[Any] = list(returned)
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in names:
            made.append(node.value)
        if isinstance(node, ast.AugAssign) and ast.unparse(node.target) in names:
            made.append(node.value)
    return any(_is_tuple(value) for value in made)


def _is_tuple(value: ast.expr) -> bool:
    if isinstance(value, ast.BinOp):
        return _is_tuple(value.left) or _is_tuple(value.right)
    return isinstance(value, ast.Tuple)


def _forward(module: nn.Module) -> ast.AST:
    return ast.parse(textwrap.dedent(inspect.getsource(type(module).forward)))

"""Which families of transformers rotate, and which of their classes do: read from the source."""

import ast
import importlib
import inspect
import re
from collections.abc import Hashable
from functools import cache
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import transformers
from torch import nn
from transformers import PreTrainedModel

MODELS = Path(transformers.__file__).parent / "models"


ROTATES = re.compile(r"rotate_(half|every_two|pairwise)|apply_\w*rot|apply_\w*rope")


@cache
def rotary_families() -> tuple[str, ...]:
    """Directories of transformers/models whose modeling file defines or calls a rotation."""
    found = {x.parent.name for x in MODELS.glob("*/modeling_*.py") if _applies_rotary(x)}
    return tuple(sorted(found))


def _applies_rotary(path: Path) -> bool:
    text = path.read_text(encoding="utf-8")
    if not ROTATES.search(text):
        return False
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and ROTATES.search(node.name):
            return True
        if isinstance(node, ast.Call) and ROTATES.search(ast.unparse(node.func)):
            return True
    return False


def modeling_modules(family: str) -> list[ModuleType]:
    """The family's modeling files as modules, those that apply rotary embeddings."""
    paths = sorted((MODELS / family).glob("modeling_*.py"))
    return [
        importlib.import_module(f"transformers.models.{family}.{x.stem}")
        for x in paths
        if _applies_rotary(x)
    ]


def own_classes(module: ModuleType, base: type) -> list[Any]:
    """Classes that the file itself defines, in its order."""
    return [
        x
        for x in vars(module).values()
        if inspect.isclass(x) and issubclass(x, base) and x.__module__ == module.__name__
    ]


@cache
def rotates(cls: Hashable) -> bool:
    """Whether the forward of a module class, or a method or helper it calls, rotates."""
    forward = getattr(cls, "forward", None)
    return isinstance(cls, type) and forward is not None and _reaches(forward, cls, set())


def _reaches(function: Any, cls: type, seen: set[Any]) -> bool:
    function = inspect.unwrap(function)
    code = getattr(function, "__code__", None)
    if code is None or code in seen:
        return False
    seen.add(code)
    names = _names(code)
    if any(ROTATES.search(x) for x in names):
        return True
    module = getattr(function, "__globals__", {})
    for name in names:
        method, helper = inspect.getattr_static(cls, name, None), module.get(name)
        if isinstance(method, staticmethod):
            method = method.__func__
        for target in (method, helper):
            own = getattr(target, "__module__", "") == cls.__module__
            if inspect.isfunction(target) and own and _reaches(target, cls, seen):
                return True
    return False


def _names(code: CodeType) -> set[str]:
    inner = [_names(x) for x in code.co_consts if isinstance(x, CodeType)]
    return set(code.co_names).union(*inner)


def attention_modules(model: nn.Module, family: str) -> dict[str, nn.Module]:
    """The modules of the model that apply rotary embeddings and hold the projections, by path.

    Where the rotation is applied by a helper module without projections, its parent is meant.
    """
    prefix, found = f"transformers.models.{family}.", {}
    modules = dict(model.named_modules())
    for path, module in modules.items():
        if not type(module).__module__.startswith(prefix) or isinstance(module, PreTrainedModel):
            continue
        kind: Any = type(module)
        if not rotates(kind):
            continue
        while path and not any(x.dim() > 1 for x in module.parameters()):
            path = path.rpartition(".")[0]
            module = modules[path]
        found[path] = module
    return {
        path: module
        for path, module in found.items()
        if path and not any(path.startswith(f"{x}.") for x in found)
    }


def rotary_attention_classes(family: str) -> set[str]:
    """Names of the classes of the family's file that apply a rotation and hold projections."""
    return set().union(*(rotary_attention_in(x) for x in modeling_modules(family)))


def rotary_attention_in(module: ModuleType) -> set[str]:
    return {
        x.__name__
        for x in own_classes(module, nn.Module)
        if not issubclass(x, PreTrainedModel)
        and rotates(x)
        and _projects(x)
        and "Flash" not in x.__name__
    }


def _projects(cls: type) -> bool:
    sources = (inspect.getsource(x) for x in cls.__mro__ if x.__module__ == cls.__module__)
    return any("Linear" in x or "Conv" in x for x in sources)

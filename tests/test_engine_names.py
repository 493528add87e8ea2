"""Every name of TensorRT that is used exists in both modules, or is asked for before it is used.

The list was read off the bindings of tensorrt 11.4.0.106 and tensorrt_rtx 1.7.1.116 with dir(); the
one that is installed here is compared with it.
"""

import ast
import importlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import rope_export

ENGINES = Path(rope_export.__file__).parent / "engines"
LISTED = json.loads(Path(__file__).with_name("tensorrt_names.json").read_text(encoding="utf-8"))
RTX, FULL = (LISTED[f"{name}"] for name in ("tensorrt_rtx 1.7.1.116", "tensorrt 11.4.0.106"))

OBJECTS = {
    "builder.py": {
        "builder": "Builder",
        "config": "IBuilderConfig",
        "made": "IOptimizationProfile",
        "parsed": "INetworkDefinition",
    },
    "execution.py": {
        "runtime": "Runtime",
        "_runtime": "Runtime",
        "loaded": "ICudaEngine",
        "_loaded": "ICudaEngine",
        "_config": "IRuntimeConfig",
        "_inner": "IExecutionContext",
        "_cache": "IRuntimeCache",
    },
    "network.py": {
        "parser": "OnnxParser",
        "network": "INetworkDefinition",
        "attention": "IAttention",
    },
}
"""What the files that hold TensorRT's objects call them, and their classes."""

FILES = sorted(ENGINES.glob("*.py"))


def chain(node: ast.AST) -> tuple[str, ...]:
    """a.b.c as its parts; nothing for what is more than names."""
    if isinstance(node, ast.Name):
        return (node.id,)
    if isinstance(node, ast.Attribute):
        inner = chain(node.value)
        return (*inner, node.attr) if inner else ()
    return ()


def used(path: Path) -> Iterator[tuple[str, ...]]:
    """Names of the module itself, and members of its classes: ("BuilderFlag", "TF32")."""
    objects = OBJECTS.get(path.name, {})
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Attribute):
            continue
        parts = chain(node)
        if "trt" in parts[:2]:
            names = parts[parts.index("trt") + 1 :]
            if names and not names[:2][-1].startswith("__"):
                yield names[:2]
        elif len(parts) >= 2 and parts[-2] in objects and parts[0] in ("self", parts[-2]):
            yield objects[parts[-2]], parts[-1]


def has(names: tuple[str, ...], listed: dict[str, list[str] | None]) -> bool:
    if names[0] not in listed:
        return False
    members = listed[names[0]]
    return len(names) == 1 or names[1] in (members or ())


def asked_for(path: Path) -> set[str]:
    """Names that the file asks for with hasattr or has."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and chain(node.func)[-1:] in (("has",), ("hasattr",)):
            found |= {
                part
                for argument in node.args
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
                for part in argument.value.split(".")
            }
    return found


GUARDED = {"set_runtime_cache": "create_runtime_cache", "IRuntimeCache": "create_runtime_cache"}
GUARDED |= {"EngineValidity": "get_engine_validity", "engine_header_size": "get_engine_validity"}
GUARDED |= {"EngineInvalidityDiagnostics": "get_engine_validity"}
GUARDED |= {"num_compute_capabilities": "ComputeCapability"}
GUARDED |= {"set_compute_capability": "ComputeCapability"}
"""What comes with a name that is asked for."""


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_names_exist_in_both_modules_or_are_asked_for(path: Path) -> None:
    asked = set().union(*map(asked_for, FILES))
    for names in used(path):
        lacking = [listed is RTX for listed in (RTX, FULL) if not has(names, listed)]
        if not lacking:
            continue
        assert len(lacking) == 1, f"{path.name}: neither module has {'.'.join(names)}"
        guards = {*names, *(GUARDED[name] for name in names if name in GUARDED)}
        assert guards & asked, f"{path.name}: only one module has {'.'.join(names)}"


def test_names_are_found_at_all() -> None:
    """The search sees what it is about: a module's name, a class's member, an object's method."""
    everything = {names for path in FILES for names in used(path)}
    for names in (
        ("BuilderFlag", "TF32"),
        ("Builder", "build_serialized_network"),
        ("IBuilderConfig", "set_compute_capability"),
        ("IExecutionContext", "execute_async_v3"),
        ("ICudaEngine", "get_aliased_input_tensor"),
        ("IRuntimeConfig", "set_runtime_cache"),
    ):
        assert names in everything
        assert has(names, RTX)
    assert not has(("BuilderFlag", "FP16"), FULL)


def test_the_module_that_is_installed_is_the_one_that_was_listed() -> None:
    trt = importlib.import_module("tensorrt_rtx")
    assert trt.__version__ == "1.7.1.116"
    for name, members in RTX.items():
        if name.startswith("tensorrt_rtx"):
            continue
        assert hasattr(trt, name)
        for member in members or ():
            assert hasattr(getattr(trt, name), member), f"{name}.{member}"

"""Every name of TensorRT that the code uses is in both modules, or asked for with hasattr."""

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import rope_export

PACKAGE = Path(rope_export.__file__).parent
KNOWN = json.loads((Path(__file__).parent / "tensorrt_names.json").read_text("utf-8"))
MODULES = ("tensorrt", "tensorrt_rtx")
FILES = sorted((PACKAGE / "engines").glob("*.py"))
FILES += [p for p in [PACKAGE / "runtimes" / "tensorrt.py"] if p.exists()]
MADE = {
    "create_network": "INetworkDefinition",
    "create_builder_config": "IBuilderConfig",
    "create_optimization_profile": "IOptimizationProfile",
    "create_timing_cache": "ITimingCache",
    "create_execution_context": "IExecutionContext",
    "create_runtime_config": "IRuntimeConfig",
    "create_runtime_cache": "IRuntimeCache",
    "deserialize_cuda_engine": "ICudaEngine",
    "get_layer": "ILayer",
    "get_error": "ParserError",
}
"""What a method that makes an object gives."""
GIVEN = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "config": "IBuilderConfig",
    "layer": "ILayer",
    "attention": "IAttention",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "parsed": "INetworkDefinition",
    "runtime": "Runtime",
    "loaded": "ICudaEngine",
}
"""What a parameter of that name is, where its type is Any."""
HELD = {
    "self._inner": "IExecutionContext",
    "self._runtime": "Runtime",
    "self._loaded": "ICudaEngine",
    "self._config": "IRuntimeConfig",
    "self._cache": "IRuntimeCache",
}
"""What an attribute of that name holds."""
TOGETHER = {
    "ComputeCapability": {"num_compute_capabilities", "set_compute_capability"},
    "get_engine_validity": {
        "EngineValidity",
        "EngineInvalidityDiagnostics",
        "engine_header_size",
    },
    "create_runtime_cache": {"IRuntimeCache", "set_runtime_cache"},
}
"""Names that a module has if it has the one that the code asks for."""
Use = tuple[str, str, int]


def called(node: ast.expr) -> str | None:
    """The class of what an expression makes, if it is one of TensorRT's."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return None
    if is_module(node.func.value):
        return node.func.attr
    return MADE.get(node.func.attr)


def is_module(node: ast.expr) -> bool:
    """`trt`, or the attribute `trt` of something."""
    name = node.id if isinstance(node, ast.Name) else getattr(node, "attr", None)
    return name == "trt"


def objects(function: ast.FunctionDef) -> dict[str, str]:
    """The TensorRT class of each local name, as far as it can be told."""
    found = dict(HELD)
    for given in (*function.args.args, *function.args.kwonlyargs):
        if given.annotation is not None and ast.unparse(given.annotation) == "Any":
            found |= {given.arg: GIVEN[given.arg]} if given.arg in GIVEN else {}
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and (made := called(node.value)):
            found |= {target.id: made for target in node.targets if isinstance(target, ast.Name)}
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Attribute):
            (target,) = node.targets
            if isinstance(target, ast.Attribute) and target.attr == "__class__":
                found[ast.unparse(target.value)] = node.value.attr
    return found


def uses(tree: ast.AST) -> Iterator[Use]:
    """Class ("" for the module itself), name and line of every attribute of TensorRT's."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            if is_module(node.value):
                yield "", node.attr, node.lineno
            elif isinstance(node.value, ast.Attribute) and is_module(node.value.value):
                yield node.value.attr, node.attr, node.lineno
    for function in (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)):
        known = objects(function)
        for node in ast.walk(function):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in known:
                yield known[ast.unparse(node.value)], node.attr, node.lineno


def asked_for(tree: ast.AST) -> set[str]:
    """Names that the code asks for before it uses them, dotted ones by their parts."""
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args)
    asking = (c for c in calls if ast.unparse(c.func).rpartition(".")[2] in ("hasattr", "has"))
    said = (c.args[-1].value for c in asking if isinstance(c.args[-1], ast.Constant))
    names = {part for name in said for part in str(name).split(".")}
    return names.union(*(TOGETHER.get(name, set()) for name in names))


def missing(source: str, asked: str = "") -> list[str]:
    """The names that a module lacks and that are not asked for, there or in `asked`."""
    tree = ast.parse(source)
    gated = asked_for(tree) | asked_for(ast.parse(asked))
    found = []
    for owner, name, line in uses(tree):
        for module in MODULES:
            facts = KNOWN[module]
            names = facts["names"] if owner == "" else facts["members"].get(owner, [])
            optional = gated & {owner, name}
            if name not in names and not name.startswith("__") and not optional:
                found.append(f"line {line}: {module} {facts['version']} has no {owner}.{name}")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_names_are_in_both_modules_or_asked_for(path: Path) -> None:
    every = "\n".join(p.read_text(encoding="utf-8") for p in FILES)
    assert missing(path.read_text(encoding="utf-8"), every) == []


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("trt.OnnxParsr", "has no .OnnxParsr"),
        ("trt.LayerType.ATTENTION", "has no LayerType.ATTENTION"),
        ("module.trt.Builder.nothing", "has no Builder.nothing"),
        ("trt.ComputeCapability", "tensorrt 11.4.0.106 has no .ComputeCapability"),
        ("def f(trt):\n b = trt.Builder(1)\n c = b.create_builder_config()\n c.fp16", "fp16"),
        ("def f(network: Any):\n network.num_layer", "has no INetworkDefinition.num_layer"),
        ("def f(self):\n self._inner.execute_v4(1)", "has no IExecutionContext.execute_v4"),
    ],
)
def test_a_name_that_is_missing_is_found(source: str, named: str) -> None:
    assert named in "\n".join(missing(source))


def test_a_name_that_is_asked_for_may_be_missing() -> None:
    gated = "if hasattr(trt, 'ComputeCapability'):\n trt.ComputeCapability.SM89"
    assert missing(gated) == []
    assert missing("def f(network: NetworkFacts):\n network.rotary") == []


def test_the_installed_module_has_the_names_that_are_listed() -> None:
    """The list is what it says it is."""
    installed = pytest.importorskip(
        "tensorrt_rtx", reason="needs TensorRT for RTX: pip install 'rope_export[rtx]'"
    )
    facts = KNOWN["tensorrt_rtx"]
    if installed.__version__ != facts["version"]:
        pytest.skip(f"the list is of {facts['version']}, this is {installed.__version__}")
    for owner, names in facts["members"].items():
        assert set(names) <= set(dir(getattr(installed, owner)))

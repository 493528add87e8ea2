"""torch's table of ONNX operators, read once in a process.

torch's exporter compiles its hundreds of operators from source anew for every model, which takes a
good part of the time of one layer. The table is the same each time.
"""

import copy
import functools
from typing import Any


def read_once() -> None:
    """Let further exports of this process reuse the table. Of a torch that keeps it elsewhere,
    nothing is changed."""
    try:
        from torch.onnx._internal.exporter import _registration
    except ImportError:
        return
    scripts: Any = getattr(_registration, "onnxscript_apis", None)
    read = getattr(scripts, "get_torchlib_ops", None)
    if read is not None and not hasattr(read, "cache_info"):
        scripts.get_torchlib_ops = functools.cache(read)
    registry: Any = getattr(_registration, "ONNXRegistry", None)
    build = getattr(registry, "from_torchlib", None)
    if build is not None and not hasattr(build, "built"):
        registry.from_torchlib = _building_once(build)


def _building_once(build: Any) -> Any:
    """The same registry of operators at every call, each a copy, to which more may be added."""
    built = functools.cache(build)

    def from_torchlib(*args: Any, **kwargs: Any) -> Any:
        registry = copy.copy(built(*args, **kwargs))
        registry.functions = {name: list(of) for name, of in registry.functions.items()}
        return registry

    from_torchlib.built = built  # type: ignore[attr-defined]
    return staticmethod(from_torchlib)

"""TensorRT's two Python modules behind one name each: which is here, and what it has.

What only one of them has is asked for by `has`, never by a version.
"""

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any

from rope_export import gpu
from rope_export.errors import InputError, UnavailableError

PACKAGES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
"""What an engine is built with and run by, and the module that it is imported as."""

EXTRAS = {"tensorrt": "tensorrt", "tensorrt-rtx": "rtx"}

REQUIRED = ("IAttention", "IRotaryEmbeddingLayer", "IKVCacheUpdateLayer")
"""Names that a module must have; TensorRT has them all since 10.15."""


@dataclass(frozen=True, kw_only=True)
class Module:
    """A module that is here. engine: "tensorrt" or "tensorrt-rtx". trt: what was imported."""

    engine: str
    trt: Any

    @property
    def version(self) -> str:
        return str(self.trt.__version__)

    def has(self, name: str) -> bool:
        """Whether the module has `name`, such as "ComputeCapability" or "BuilderFlag.REFIT"."""
        value = self.trt
        for part in name.split("."):
            if not hasattr(value, part):
                return False
            value = getattr(value, part)
        return True

    @property
    def ahead_of_time(self) -> bool:
        """Whether the module builds for GPUs that are not here, and without one."""
        return self.has("ComputeCapability")

    def cannot_build(self) -> str | None:
        """Why the module builds no engine here, or nothing."""
        if self.ahead_of_time or gpu.here() is not None:
            return None
        return f"it builds on the GPU it builds for, and {gpu.missing()}"

    def capabilities(self) -> dict[str, Any]:
        """The compute capabilities it builds for, such as "8.9", ascending; none where it builds
        for the GPU that is here."""
        if not self.ahead_of_time:
            return {}
        members = self.trt.ComputeCapability.__members__
        named = {name: member for name, member in members.items() if name.startswith("SM")}
        return {
            f"{number // 10}.{number % 10}": named[f"SM{number}"]
            for number in sorted(int(name.removeprefix("SM")) for name in named)
        }


def engine_name(name: str) -> str:
    """Raises: InputError if there is no such engine."""
    if name not in PACKAGES:
        raise InputError(f"`engine`={name}: use one of {', '.join(PACKAGES)}.")
    return name


def missing(engine: str) -> str | None:
    """Why the module of `engine` cannot be used here, or nothing."""
    try:
        load(engine)
    except UnavailableError as error:
        return str(error)
    return None


def load(engine: str) -> Module:
    """The module of `engine`.

    Raises: UnavailableError if it is not installed, does not load, or is too old.
    """
    package = PACKAGES[engine]
    way = f"pip install 'rope_export[{EXTRAS[engine]}]'"
    if importlib.util.find_spec(package) is None:
        raise UnavailableError(f"the package {package!r} is not installed; install it with: {way}")
    try:
        trt = importlib.import_module(package)
    except (ImportError, OSError) as error:  # its libraries are packages of their own
        first = str(error).strip().splitlines()[0]
        raise UnavailableError(
            f"the package {package!r} does not load ({first}); install it anew with: {way}"
        ) from error
    module = Module(engine=engine, trt=trt)
    for name in REQUIRED:
        if not module.has(name):
            raise UnavailableError(
                f"{package} {module.version} has no {name}; upgrade it with: {way}"
            )
    return module


def find(engine: str | None = None) -> Module:
    """The module of `engine`, or without a name the one that can build here.

    tensorrt builds only on a GPU and for that one, so without a GPU tensorrt-rtx comes first.
    Raises: InputError for an unknown name; UnavailableError saying what to install.
    """
    if engine is not None:
        return load(engine_name(engine))
    engines = list(PACKAGES) if gpu.missing() is None else list(reversed(PACKAGES))
    reasons = []
    for name in engines:
        try:
            return load(name)
        except UnavailableError as error:
            reasons.append(str(error))
    raise UnavailableError("; or ".join(reasons))


def builders() -> dict[str, str | None]:
    """Each engine, and why none of its kind can be built here, or nothing."""
    return {engine: missing(engine) or load(engine).cannot_build() for engine in PACKAGES}

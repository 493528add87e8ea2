"""Runtimes: each says why it is not available, or opens an artifact. Found by looking here."""

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, TypeAlias

import numpy as np

from rope_export.artifact import Artifact, steady
from rope_export.contract import LENGTHS, TensorType, bind_axes, check_lengths
from rope_export.errors import InputError, TensorError, UnavailableError
from rope_export.manifest import Manifest

if TYPE_CHECKING:
    import torch

    from rope_export.stream import Stream

    Array: TypeAlias = np.ndarray | torch.Tensor
    Held: TypeAlias = Callable[[Mapping[str, Array], Mapping[str, int]], dict[str, Array]]


class Session(ABC):
    """An open artifact. `run` keeps no state and may be called from several threads at once."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.inputs: tuple[TensorType, ...] = manifest.inputs
        self.outputs: tuple[TensorType, ...] = manifest.outputs

    def run(self, inputs: Mapping[str, "Array"]) -> dict[str, "Array"]:
        """One call.

        inputs: every tensor the artifact takes, all numpy arrays or all torch tensors, with the
            names, dtypes and shapes of the contract; bfloat16 in numpy is ml_dtypes' bfloat16.
            The slots of a fixed cache that are not in use may hold any finite number.
        Returns: every output by name, of the same kind and on the same device as the inputs; of a
            fixed cache a copy with the new entries (a Stream writes in place).
        Raises: TensorError, before anything is run, for what breaks the contract.
        """
        of_torch = {name: is_torch(value) for name, value in inputs.items()}
        if len(set(of_torch.values())) > 1:
            raise TensorError("inputs mix numpy arrays and torch tensors; give one kind.")
        axes = bind_axes(self.inputs, {n: (dtype_name(x), x.shape) for n, x in inputs.items()})
        if LENGTHS in inputs:
            check_lengths(inputs[LENGTHS].tolist(), axes["sequence"], axes["capacity"])
        return self._run(inputs, axes, {})

    @property
    def capacity(self) -> int | None:
        """The one capacity that a fixed cache must have here, if it must have one."""
        return None

    def start(self, batch: int = 1, capacity: int | None = None) -> "Stream":
        """A sequence of calls that keeps its own cache, for one thread.

        batch: rows. capacity: entries of each row's cache; needed where the cache is fixed, but for
        an engine, which has one.
        Raises: InputError if the artifact has no cache, or capacity does not fit it.
        """
        from rope_export.stream import Stream

        return Stream(self, batch=batch, capacity=capacity)

    @abstractmethod
    def _run(
        self, inputs: Mapping[str, "Array"], axes: Mapping[str, int], into: Mapping[str, "Array"]
    ) -> dict[str, "Array"]:
        """Run checked inputs; `axes` has the size of every dynamic axis, `into` the tensors that
        some outputs are to be written to, which may be inputs of a fixed cache."""

    def _hold(self, kept: Mapping[str, "Array"], into: Mapping[str, "Array"]) -> "Held":
        """A way to make many calls over the same tensors: `kept` are inputs of each, `into` as for
        `_run`. It takes the other inputs and the size of every axis, and gives every output."""
        return lambda inputs, axes: self._run({**kept, **inputs}, axes, into)

    def close(self) -> None:  # noqa: B027 - most runtimes have nothing to give back
        """Give back what the session holds; it cannot run afterwards."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Runtime(Protocol):
    """Something that can run an artifact."""

    name: str

    def unavailable(self, manifest: Manifest | None = None) -> str | None:
        """Why it cannot run here, or cannot run an artifact like this; nothing if it can."""

    def open(self, artifact: Artifact, threads: int | None = None) -> Session:
        """The artifact, ready to run on this runtime and on no other. threads: for one call.

        What is loaded comes from `artifact.read`, which checks it.
        """


class Missing:
    """Says which package a runtime needs and does not find."""

    needs: ClassVar[Mapping[str, str]] = {}
    """Import name to the extra that brings it."""

    def missing(self) -> str | None:
        for package, extra in self.needs.items():
            if importlib.util.find_spec(package) is None:
                return (
                    f"the package {package!r} is not installed; "
                    f"install it with: pip install 'rope_export[{extra}]'"
                )
        return None


def is_torch(value: Any) -> bool:
    """Whether `value` is a torch tensor, without importing torch."""
    return type(value).__module__.partition(".")[0] == "torch"


def dtype_name(value: "Array") -> str:
    """The dtype as ONNX and the manifest spell it, such as "float16".

    Raises: TensorError for what is neither a numpy array nor a torch tensor.
    """
    if is_torch(value):
        return str(value.dtype).removeprefix("torch.")
    if isinstance(value, np.ndarray):
        return value.dtype.name
    raise TensorError(f"{type(value).__name__} given; inputs are numpy arrays or torch tensors.")


def address(value: "Array") -> int:
    """Where the first element lies."""
    return int(value.ctypes.data if isinstance(value, np.ndarray) else value.data_ptr())


def to_numpy(value: "Array") -> np.ndarray:
    """A numpy array of the same values, without a copy if `value` lies on the CPU."""
    if isinstance(value, np.ndarray):
        return value
    value = value.detach().cpu()
    if str(value.dtype) == "torch.bfloat16":
        import ml_dtypes
        import torch

        return value.contiguous().view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return value.numpy()


def to_torch(value: np.ndarray) -> "torch.Tensor":
    """A torch tensor of the same values, without a copy."""
    import torch

    if value.dtype.name == "bfloat16":
        return torch.from_numpy(value.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(value)


def runtimes() -> dict[str, Runtime]:
    """Every runtime by its name; a file of this folder lists its own in RUNTIMES."""
    found: dict[str, Runtime] = {}
    for module in sorted(m.name for m in iter_modules(__path__)):
        for runtime in import_module(f"{__name__}.{module}").RUNTIMES:
            found[runtime.name] = runtime
    return found


def runtime(name: str) -> Runtime:
    """The runtime called `name`.

    Raises: UnavailableError naming those there are.
    """
    known = runtimes()
    if name not in known:
        raise UnavailableError(f"runtime {name!r} does not exist; known: {', '.join(known)}.")
    return known[name]


def open_session(
    artifact: str | Path | Artifact, runtime: str = "onnxruntime", *, threads: int | None = None
) -> Session:
    """Open an artifact on one runtime; it never falls back to another.

    artifact: its folder, or an open Artifact, whose own files are used and no others that lie there
    by now; an engine's as well. runtime: "onnxruntime" (CPU),
    "onnxruntime:cuda", "onnxruntime:tensorrt", "onnxruntime:tensorrt-rtx", "reference" (onnx's
    evaluator) or "eager" (PyTorch, with the weights in the file); of an engine these run its ONNX
    model, and "tensorrt" or "tensorrt-rtx" its plan. threads: that one call may use; all cores
    unless given. Sessions of one process on the same files and with the same options share their
    weights and threads.
    Raises: ArtifactError if the folder is not what its manifest says; UnavailableError if the
        runtime is not on this machine or cannot run this artifact.
    """
    chosen = _chosen(runtime)
    if isinstance(artifact, Artifact):
        return _session(artifact, chosen, threads)
    folder = Path(artifact)
    return steady(folder, lambda: _session(Artifact.peek(folder), chosen, threads))


_chosen = runtime


def _session(artifact: Artifact, chosen: Runtime, threads: int | None) -> Session:
    reason = chosen.unavailable(artifact.manifest)
    if reason:
        raise UnavailableError(f"runtime {chosen.name!r}: {reason}")
    if threads is not None and threads < 1:
        raise InputError(f"threads={threads}: a call uses at least one.")
    return chosen.open(artifact, threads)


def written(outputs: dict[str, "Array"], into: Mapping[str, "Array"]) -> dict[str, "Array"]:
    """`outputs`, with those of `into` copied there: for runtimes that cannot write in place."""
    for name, target in into.items():
        target[...] = outputs[name]  # type: ignore[assignment]
    return outputs | dict(into)


def allocate(
    types: Sequence[TensorType], axes: Mapping[str, int], like: "Array"
) -> dict[str, "Array"]:
    """Uninitialised outputs of the kind and on the device of `like`."""
    if is_torch(like):
        import torch

        return {
            t.name: torch.empty(t.sized(axes), dtype=getattr(torch, t.dtype), device=like.device)
            for t in types
        }
    return {t.name: np.empty(t.sized(axes), dtype=numpy_dtype(t.dtype)) for t in types}


def numpy_dtype(name: str) -> np.dtype:
    """numpy's dtype of that name, or ml_dtypes' for bfloat16."""
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)

"""Runtimes: each says why it is not available, or opens an artifact. Found by looking here."""

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar, Protocol, Self, TypeAlias

import numpy as np

from rope_export.arrays import address as address
from rope_export.arrays import dtype_name as dtype_name
from rope_export.arrays import is_torch as is_torch
from rope_export.arrays import like, plain_inputs
from rope_export.arrays import to_numpy as to_numpy
from rope_export.arrays import to_torch as to_torch
from rope_export.artifacts.artifact import Artifact, steady
from rope_export.artifacts.manifest import Manifest
from rope_export.errors import InputError, RopeExportError, TensorError, UnavailableError
from rope_export.interface import (
    LENGTHS,
    MASK,
    TensorType,
    bind_axes,
    cache_inputs,
    check_lengths,
)
from rope_export.sessions.slots import Once, check_hidden, hidden_slots, limit_of, moderate, without

if TYPE_CHECKING:
    import torch

    from rope_export.sessions.stream import Stream

    Array: TypeAlias = np.ndarray | torch.Tensor
    Held: TypeAlias = Callable[[Mapping[str, Array], Mapping[str, int]], dict[str, Array]]


class Session(ABC):
    """An open artifact. `run` keeps no state and may be called from several threads at once.

    whole_capacity: whether the runtime computes over every slot of a fixed cache, whatever the
        operators of the file do.
    """

    whole_capacity: ClassVar[bool] = False

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.inputs: tuple[TensorType, ...] = manifest.inputs
        self.outputs: tuple[TensorType, ...] = manifest.outputs
        self._caches, self._checked = cache_inputs(self.inputs), Once()

    def run(
        self, inputs: Mapping[str, "Array"], *, check_values: bool = True
    ) -> dict[str, "Array"]:
        """One call.

        inputs: every tensor the artifact takes, all numpy arrays or all torch tensors, with the
            names, dtypes and shapes of the contract; bfloat16 in numpy is ml_dtypes' bfloat16. Of
            any byte order and strides; what has no plain memory is refused.
        check_values: look at the values of a mask, and at the slots of a cache that are padding,
            or not in use where the manifest's stale_slots says "finite": a NaN there would spoil
            the row. A buffer is looked at once, as long as it lives. False skips this.
        Returns: every output by name, of the same kind and on the same device as the inputs; of a
            fixed cache a copy with the new entries (a Stream writes in place).
        Raises: TensorError, before anything is run, for what breaks the contract.
        """
        values = plain_inputs(inputs)
        axes = bind_axes(self.inputs, {n: (dtype_name(x), x.shape) for n, x in values.items()})
        if LENGTHS in values:
            check_lengths(values[LENGTHS].tolist(), axes["sequence"], axes["capacity"])
        self.check_positions(values)
        if check_values:
            self._check_values(inputs, values, axes)
        return self._run(values, axes, {})

    def check_positions(self, inputs: Mapping[str, "Array"]) -> None:
        """Raises: TensorError for a position before the first that the artifact states."""
        first = self.manifest.first_position
        if first is None or "position_ids" not in inputs:
            return
        lowest = int(inputs["position_ids"].min())
        if lowest < first:
            raise TensorError(
                f"input 'position_ids' holds {lowest}; queries of this layer grow with their "
                f"position, which is defined from {first} on."
            )

    def _check_values(
        self, given: Mapping[str, object], values: dict[str, "Array"], axes: Mapping[str, int]
    ) -> None:
        """Refuse wrong masks and hidden slots that would spoil a row; of padded tokens, put zeros
        in the place of what is not finite."""
        unseen = [name for name in self._caches if given[name] not in self._checked]
        stale = self.whole_capacity or self.manifest.stale_slots == "finite"
        if MASK not in values and not (stale and unseen):
            return
        hidden = hidden_slots(values.get(MASK), values.get(LENGTHS), axes, stale=stale)
        if hidden is None:
            return
        limit = limit_of(self.manifest.dtype)
        for name in unseen:
            check_hidden(name, values[name], hidden.cached, limit)
            self._checked.add(given[name])
        tokens = values["hidden_states"]
        if hidden.new is not None and not moderate(tokens[like(tokens, hidden.new)], limit):
            values["hidden_states"] = without(tokens, hidden.new)

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
        from rope_export.sessions.stream import Stream

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
    """Uninitialised outputs of the kind and on the device of `like`.

    Raises: RopeExportError if there is no memory for them.
    """
    try:
        if is_torch(like):
            import torch

            return {
                t.name: torch.empty(
                    t.sized(axes), dtype=getattr(torch, t.dtype), device=like.device
                )
                for t in types
            }
        return {t.name: np.empty(t.sized(axes), dtype=numpy_dtype(t.dtype)) for t in types}
    except (MemoryError, RuntimeError, ValueError, OverflowError) as error:
        wanted = ", ".join(f"{t.name} {t.sized(axes)}" for t in types)
        raise RopeExportError(f"there is no memory for {wanted}.") from error


def numpy_dtype(name: str) -> np.dtype:
    """numpy's dtype of that name, or ml_dtypes' for bfloat16."""
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)

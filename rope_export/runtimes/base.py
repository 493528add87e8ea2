"""What a runtime is, and the thin Runner that it opens an artifact as."""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from rope_export.arrays import is_torch, numpy_dtype
from rope_export.errors import RopeExportError
from rope_export.interface import TensorType

if TYPE_CHECKING:
    from typing import TypeAlias

    from rope_export.arrays import Array
    from rope_export.artifacts.folder import Folder

    Prepared: TypeAlias = Callable[[Mapping[str, Array], Mapping[str, int]], dict[str, Array]]

Compute = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]
"""Every output of a model by name, from its inputs by name."""


class Runner(Protocol):
    """Runs calls of an artifact that somebody else has checked, from several threads at once.

    capacity: the number of slots that a fixed cache must have, if only one is possible.
    whole_capacity: whether every slot of a fixed cache takes part in the computation, whatever the
        operators of the file do.
    """

    capacity: int | None = None
    whole_capacity: bool = False

    def run(
        self, inputs: "Mapping[str, Array]", axes: Mapping[str, int], into: "Mapping[str, Array]"
    ) -> "dict[str, Array]":
        """One call: every output by name, of the kind and on the device of the inputs.

        axes: the size of every dynamic axis. into: tensors that some outputs are to be written to;
        they may be the inputs of a fixed cache.
        """
        ...

    def allocate(
        self, types: Sequence[TensorType], axes: Mapping[str, int], like: "Array"
    ) -> "dict[str, Array]":
        """Uninitialised caches for a stream of calls whose main input is like this, where the
        runner takes them without a copy."""
        return allocate(types, axes, like)

    def prepare(self, kept: "Mapping[str, Array]", into: "Mapping[str, Array]") -> "Prepared":
        """Many calls over the same tensors: a function of the other inputs and of the axes, which
        gives every output.

        kept: inputs of every call. into: as for `run`.
        """
        return lambda inputs, axes: self.run({**kept, **inputs}, axes, into)

    def follow(
        self,
        inputs: "Mapping[str, Array]",
        caches: Mapping[str, Any],
        pairs: Mapping[str, str],
        axes: Mapping[str, int],
    ) -> "tuple[dict[str, Array], dict[str, Any]]":
        """One of many calls that hand on growing caches, which nobody else looks at meanwhile.

        caches: by the names of their inputs, arrays or what the last such call gave; `array` makes
        arrays of these. pairs: the name of each one's output by that of its input.
        Returns: the other outputs, and the caches by the names of their inputs.
        """
        outputs = self.run({**inputs, **caches}, axes, {})
        return outputs, {before: outputs.pop(after) for before, after in pairs.items()}

    def array(self, cache: Any) -> "Array":
        """A cache that `follow` gave, as an array."""
        array: Array = cache
        return array

    def close(self) -> None:
        """Release what the runner holds; it cannot run afterwards."""
        return


class Runtime(Protocol):
    """Something that can run an artifact. on_gpu: whether it needs a GPU."""

    name: str
    on_gpu: bool

    def unavailable(self, artifact: "Folder | None" = None) -> str | None:
        """Why it cannot run here, or cannot run an artifact like this; nothing if it can."""

    def open(self, artifact: "Folder", threads: int | None = None) -> Runner:
        """The artifact, ready to run on this runtime and on no other. threads: for one call.

        What is loaded comes from `artifact.read`, which checks it.
        """
        ...


@runtime_checkable
class RunsModels(Protocol):
    """A runtime that runs any ONNX model, such as a layer that was cut out of a decoder."""

    def compute(self, model: bytes, threads: int | None = None) -> Compute:
        """The model, ready to be called. threads: for one call; all cores unless given.

        Raises: ArtifactError if it is refused; the function that is returned, RopeExportError.
        """
        ...


class NeedsPackages:
    """A runtime that needs packages, and names the one that is not installed."""

    needs: ClassVar[Mapping[str, str]] = {}
    """Import name to the extra that brings it."""
    on_gpu: bool = False

    def missing(self) -> str | None:
        for package, extra in self.needs.items():
            if importlib.util.find_spec(package) is None:
                return (
                    f"the package {package!r} is not installed; "
                    f"install it with: pip install 'rope_export[{extra}]'"
                )
        return None


def older(version: str, required: str) -> bool:
    """Whether a version is older than the one required, by major and minor."""
    numbers = ([int(part) for part in text.split(".")[:2]] for text in (version, required))
    return next(numbers) < next(numbers)


def written(outputs: "dict[str, Array]", into: "Mapping[str, Array]") -> "dict[str, Array]":
    """Copy `outputs` to the tensors of `into`, for runtimes that cannot write in place."""
    for name, target in into.items():
        target[...] = outputs[name]  # type: ignore[assignment]
    return outputs | dict(into)


def allocate(
    types: Sequence[TensorType], axes: Mapping[str, int], like: "Array"
) -> "dict[str, Array]":
    """Uninitialised tensors of the kind and on the device of `like`.

    Raises: RopeExportError if there is no memory for them.
    """
    try:
        return {t.name: _allocated(t.sized(axes), t.dtype, like) for t in types}
    except (MemoryError, RuntimeError, ValueError, OverflowError) as error:
        sizes = ", ".join(f"{t.name} {t.sized(axes)}" for t in types)
        raise RopeExportError(f"there is no memory for {sizes}.") from error


def _allocated(shape: tuple[int, ...], dtype: str, like: "Array") -> "Array":
    if not is_torch(like):
        return np.empty(shape, dtype=numpy_dtype(dtype))
    import torch

    return torch.empty(shape, dtype=getattr(torch, dtype), device=like.device)

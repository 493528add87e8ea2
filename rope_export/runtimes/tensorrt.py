"""TensorRT's two runtimes, which run the plan of an engine's folder on the current GPU."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from rope_export import gpu
from rope_export.arrays import address, is_torch, to_numpy, to_torch
from rope_export.engines import module
from rope_export.engines.calls import Calls
from rope_export.engines.plan import Engine, check_gpu, check_version
from rope_export.engines.profiles import selected
from rope_export.errors import ProfileError, RopeExportError, TensorError, UnavailableError
from rope_export.interface import TensorType
from rope_export.runtimes.base import NeedsPackages, Runner, allocate, written

if TYPE_CHECKING:
    import torch

    from rope_export.arrays import Array
    from rope_export.artifacts.folder import Folder
    from rope_export.engines.execution import Context, Device


class TensorrtRuntime(NeedsPackages):
    """The runtime of one module, which has its name."""

    needs: ClassVar[Mapping[str, str]] = {"torch": "export"}
    on_gpu = True

    def __init__(self, engine: str) -> None:
        self.name = engine

    def unavailable(self, artifact: "Folder | None" = None) -> str | None:
        """Raises: ArtifactError for a plan of another version or GPU: it has to be built again."""
        reason = self._unfit(artifact) or module.missing(self.name) or self.missing()
        if reason:
            return reason
        if isinstance(artifact, Engine):
            check_version(None, artifact.facts, module.load(self.name).version)
        reason = gpu.missing()
        if reason:
            return reason
        here = gpu.here()
        if isinstance(artifact, Engine) and here is not None:
            check_gpu(None, artifact.facts, here)
        import torch

        return None if torch.cuda.is_available() else "this torch was built without CUDA"

    def _unfit(self, artifact: "Folder | None") -> str | None:
        if artifact is None:
            return None
        if not isinstance(artifact, Engine):
            return "it runs engines; make one of this artifact with: rope-export build"
        if artifact.facts.engine != self.name:
            return f"the plan is one of {artifact.facts.engine}'s; use that runtime"
        return None

    def open(self, artifact: "Folder", threads: int | None = None) -> Runner:
        """threads: not used, the GPU computes."""
        from rope_export.engines.execution import Cuda, Plan

        here = gpu.here()
        if not isinstance(artifact, Engine) or here is None:
            raise UnavailableError(f"runtime {self.name!r}: {self.unavailable(artifact)}")
        plan = Plan(module.load(self.name), artifact, here)
        return EngineRunner(artifact, plan.context, Cuda(), plan.close)


class EngineRunner(Runner):
    """Tensors on the GPU are bound by address, others are copied there and back.

    Outputs are allocated here, for every call anew, but those of a fixed cache: they are written
    where their inputs lie, by a Session in a copy, by a Stream in its own cache, which lies on the
    GPU whatever the tokens are.
    """

    def __init__(
        self,
        engine: Engine,
        context: "Callable[[], Context]",
        device: "Device",
        close: Callable[[], None] = lambda: None,
    ) -> None:
        self._interface = engine.manifest.interface
        self._profiles = engine.facts.profiles
        sizes = self._profiles[0].axes.get("capacity")
        self.capacity = None if sizes is None else sizes.max  # a number in the plan
        self._device, self._close = device, close
        self._calls: Calls | None = Calls(self._interface, context, device)

    def run(
        self, inputs: "Mapping[str, Array]", axes: Mapping[str, int], into: "Mapping[str, Array]"
    ) -> "dict[str, Array]":
        outputs, in_place = self._computed(inputs, axes, into)
        apart = self._apart({n: x for n, x in outputs.items() if x is not in_place.get(n)}, inputs)
        return written(apart, {n: x for n, x in into.items() if n in apart}) | dict(into)

    def allocate(
        self, types: Sequence[TensorType], axes: Mapping[str, int], like: "Array"
    ) -> "dict[str, Array]":
        import torch

        return allocate(types, axes, torch.empty(0, device=self._device.place))

    def follow(
        self,
        inputs: "Mapping[str, Array]",
        caches: Mapping[str, Any],
        pairs: Mapping[str, str],
        axes: Mapping[str, int],
    ) -> "tuple[dict[str, Array], dict[str, Any]]":
        """The caches stay on the GPU."""
        outputs, _ = self._computed({**inputs, **caches}, axes, {})
        held = {before: outputs.pop(after) for before, after in pairs.items()}
        return self._apart(outputs, inputs), held

    def _computed(
        self, inputs: "Mapping[str, Array]", axes: Mapping[str, int], into: "Mapping[str, Array]"
    ) -> "tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]":
        """Every output, on the GPU, and those of them that were written where they are wanted."""
        import torch

        if self._calls is None:
            raise RopeExportError("the session is closed.")
        profile = selected(self._profiles, axes)
        if isinstance(profile, str):
            raise ProfileError(f"no profile of the engine takes this call: {profile}.")
        tensors = {name: self._on_device(name, value) for name, value in inputs.items()}
        in_place = {
            pair.output: tensors[pair.input]
            for pair in self._interface.caches
            if pair.output in into
            if tensors[pair.input].data_ptr() == address(into[pair.output])
        }
        with torch.no_grad():
            return self._calls.run(profile, tensors, axes, in_place), in_place

    def _apart(
        self, outputs: "Mapping[str, torch.Tensor]", inputs: "Mapping[str, Array]"
    ) -> "dict[str, Array]":
        """The outputs of the kind and on the device of the main input."""
        like = inputs[self._interface.main_input]
        return {
            name: tensor.to(like.device) if is_torch(like) else to_numpy(tensor)
            for name, tensor in outputs.items()
        }

    def _on_device(self, name: str, value: "Array") -> "torch.Tensor":
        tensor = value if is_torch(value) else to_torch(to_numpy(value))
        if str(tensor.device) not in (self._device.place, "cpu"):
            raise TensorError(
                f"tensor {name!r} lies on {tensor.device}; the engine is on {self._device.place}, "
                f"which takes tensors from there or from the CPU."
            )
        return tensor.to(self._device.place)

    def close(self) -> None:
        if self._calls is not None:
            self._calls = None
            self._close()


RUNTIMES = tuple(TensorrtRuntime(engine) for engine in module.PACKAGES)

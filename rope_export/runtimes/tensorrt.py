"""TensorRT's two runtimes: they run the plan of an engine's folder on the GPU that is here."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar

from rope_export import gpu
from rope_export.artifacts.artifact import Artifact
from rope_export.artifacts.manifest import Manifest
from rope_export.engines import module
from rope_export.engines.plan import Engine, EngineManifest, check_gpu, check_version
from rope_export.engines.profiles import selected
from rope_export.engines.session import Calls
from rope_export.errors import ProfileError, RopeExportError, TensorError, UnavailableError
from rope_export.runtimes import Missing, Session, address, is_torch, to_numpy, to_torch, written

if TYPE_CHECKING:
    from rope_export.engines.execution import Context, Device
    from rope_export.runtimes import Array


class Tensorrt(Missing):
    """The runtime of one module, which has its name."""

    needs: ClassVar[Mapping[str, str]] = {"torch": "export"}

    def __init__(self, engine: str) -> None:
        self.name = engine

    def unavailable(self, manifest: Manifest | None = None) -> str | None:
        """Raises: ArtifactError for a plan of another version or GPU: it has to be built again."""
        reason = self._unfit(manifest) or module.missing(self.name) or self.missing()
        if reason:
            return reason
        if isinstance(manifest, EngineManifest):
            check_version(None, manifest.engine, module.load(self.name).version)
        reason = gpu.missing()
        if reason:
            return reason
        here = gpu.here()
        if isinstance(manifest, EngineManifest) and here is not None:
            check_gpu(None, manifest.engine, here)
        import torch

        return None if torch.cuda.is_available() else "this torch was built without CUDA"

    def _unfit(self, manifest: Manifest | None) -> str | None:
        if manifest is None:
            return None
        if not isinstance(manifest, EngineManifest):
            return "it runs engines; make one of this artifact with: rope-export build"
        if manifest.engine.engine != self.name:
            return f"the plan is one of {manifest.engine.engine}'s; use that runtime"
        return None

    def open(self, artifact: Artifact, threads: int | None = None) -> Session:
        """threads: not used, the GPU computes."""
        from rope_export.engines.execution import Cuda, Plan

        here = gpu.here()
        if not isinstance(artifact, Engine) or here is None:
            raise UnavailableError(f"runtime {self.name!r}: {self.unavailable(artifact.manifest)}")
        plan = Plan(module.load(self.name), artifact, here)
        return EngineSession(artifact.manifest, plan.context, Cuda(), plan.close)


class EngineSession(Session):
    """Tensors on the GPU are bound by address, others are copied there and back.

    Outputs are allocated here, for every call anew, but those of a fixed cache: they are written
    where their inputs lie, by `run` in a copy, by a Stream in its own cache.
    """

    def __init__(
        self,
        manifest: EngineManifest,
        context: "Callable[[], Context]",
        device: "Device",
        close: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(manifest)
        self._profiles = manifest.engine.profiles
        self._device, self._close = device, close
        self._calls: Calls | None = Calls(manifest, context, device)

    @property
    def capacity(self) -> int | None:
        """The slots of a fixed cache, which the plan has as a number."""
        sizes = self._profiles[0].axes.get("capacity")
        return None if sizes is None else sizes.max

    def _run(
        self, inputs: Mapping[str, "Array"], axes: Mapping[str, int], into: Mapping[str, "Array"]
    ) -> dict[str, "Array"]:
        import torch

        if self._calls is None:
            raise RopeExportError("the session is closed.")
        profile = selected(self._profiles, axes)
        if isinstance(profile, str):
            raise ProfileError(f"no profile of the engine takes this call: {profile}.")
        like, there = inputs["hidden_states"], {}
        for name, value in inputs.items():
            tensor = value if is_torch(value) else to_torch(to_numpy(value))
            assert isinstance(tensor, torch.Tensor)
            if str(tensor.device) not in (self._device.place, "cpu"):
                raise TensorError(
                    f"tensor {name!r} lies on {tensor.device}; the engine is on "
                    f"{self._device.place}, which takes tensors from there or from the CPU."
                )
            there[name] = tensor.to(self._device.place)
        before = {name: name.removesuffix("_out") for name in into}
        caches = {
            name: there[before[name]]
            for name, target in into.items()
            if there[before[name]].data_ptr() == address(target)
        }
        with torch.no_grad():
            outputs = self._calls.run(profile, there, axes, caches)
        found = {
            name: tensor.to(like.device) if is_torch(like) else to_numpy(tensor)
            for name, tensor in outputs.items()
            if tensor is not caches.get(name)
        }
        return written(found, {n: x for n, x in into.items() if n in found}) | dict(into)

    def close(self) -> None:
        if self._calls is not None:
            self._calls = None
            self._close()


RUNTIMES = tuple(Tensorrt(engine) for engine in module.PACKAGES)

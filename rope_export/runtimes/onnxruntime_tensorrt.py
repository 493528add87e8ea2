"""onnxruntime's execution providers that hand the graph to TensorRT."""

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

from rope_export import gpu
from rope_export.errors import UnavailableError
from rope_export.runtimes.base import Runner
from rope_export.runtimes.onnxruntime import OPENING, OnnxRuntime, first_line

if TYPE_CHECKING:
    from rope_export.artifacts.contents import Contents
    from rope_export.artifacts.folder import Folder

PLUGIN = "onnxruntime_ep_nv_tensorrt_rtx"
"""The package that brings onnxruntime's provider of TensorRT for RTX."""

RIGHT_IN_TENSORRT = ("tensorrt", "portable")
"""Lowerings without a form that TensorRT parses and computes otherwise."""


class TensorrtProvider(OnnxRuntime):
    """A provider that hands the graph to TensorRT.

    What TensorRT computes otherwise than ONNX defines it, it computes otherwise here as well.
    """

    def unavailable(self, artifact: "Folder | None" = None) -> str | None:
        reason = super().unavailable(artifact)
        if reason or artifact is None:
            return reason
        lowering = artifact.manifest.lowering
        if lowering in RIGHT_IN_TENSORRT:
            return None
        return (
            f"TensorRT does not compute lowering {lowering!r} as ONNX says; export with "
            f"lowering 'tensorrt'"
        )

    def absent(self) -> str | None:
        return super().absent() or gpu.missing()

    def open(self, artifact: "Folder", threads: int | None = None) -> Runner:
        """Raises: InputError for a form that TensorRT computes otherwise."""
        from rope_export.engines.network import refuse

        artifact = artifact.hold()
        refuse(artifact.model, artifact.read().model)
        return super().open(artifact, threads)

    def start_from(self, files: "Contents", options: Any) -> Any:
        return self.start_from_copy(files, options)


class RtxProvider(TensorrtProvider):
    """TensorRT for RTX, a plugin in a package of its own."""

    needs: ClassVar[Mapping[str, str]] = {**OnnxRuntime.needs, PLUGIN: "ort-rtx"}

    def absent(self) -> str | None:
        try:
            return gpu.missing() or (None if self._devices() else f"{self.provider} finds no GPU")
        except UnavailableError as error:
            return str(error)

    def start(self, model: bytes | str, options: Any) -> Any:
        import onnxruntime

        options.add_provider_for_devices(self._devices()[:1], {})
        return onnxruntime.InferenceSession(model, options)

    def _devices(self) -> list[Any]:
        """The GPUs that the plugin can use, once onnxruntime has loaded it."""
        import onnxruntime

        with OPENING:
            devices = [d for d in onnxruntime.get_ep_devices() if d.ep_name == self.provider]
            if not devices:
                library = import_module(PLUGIN).get_library_path()
                try:
                    onnxruntime.register_execution_provider_library(self.provider, library)
                except Exception as error:
                    reason = first_line(error)
                    raise UnavailableError(f"{PLUGIN} does not load: {reason}") from error
            return [d for d in onnxruntime.get_ep_devices() if d.ep_name == self.provider]


RUNTIMES = (
    TensorrtProvider("onnxruntime:tensorrt", "TensorrtExecutionProvider", "cuda", "gpu"),
    RtxProvider("onnxruntime:tensorrt-rtx", "NvTensorRTRTXExecutionProvider", "cuda", "ort-rtx"),
)

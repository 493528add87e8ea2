"""Eager PyTorch on the CPU, with the weights that lie in the artifact's file."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from rope_export.arrays import check_on_cpu, is_torch, to_numpy, to_torch
from rope_export.artifacts.artifact import Artifact, layer_of
from rope_export.errors import failures
from rope_export.runtimes.base import NeedsPackages, Runner, written

if TYPE_CHECKING:
    from rope_export.arrays import Array
    from rope_export.artifacts.folder import Folder
    from rope_export.attention.layer import RotaryAttention
    from rope_export.interface import Interface


class EagerRuntime(NeedsPackages):
    name = "eager"
    needs: ClassVar[Mapping[str, str]] = {"torch": "export", "onnx": "export"}

    def unavailable(self, artifact: "Folder | None" = None) -> str | None:
        reason = self.missing()
        if reason is None and artifact is not None and not isinstance(artifact.artifact, Artifact):
            return f"it runs attention layers, and this is {artifact.artifact.title}"
        return reason

    def open(self, artifact: "Folder", threads: int | None = None) -> Runner:
        """threads: torch's own, which are the process's; not changed here."""
        from rope_export.artifacts.deployed import file_weights
        from rope_export.attention.layer import RotaryAttention
        from rope_export.spec import AttentionSpec

        spec = AttentionSpec.from_json(layer_of(artifact).facts.spec)
        layer = RotaryAttention.from_weights(spec, file_weights(artifact))
        return EagerRunner(artifact.manifest.interface, layer)


class EagerRunner(Runner):
    """A RotaryAttention behind the interface of an artifact."""

    whole_capacity = True

    def __init__(self, interface: "Interface", layer: "RotaryAttention") -> None:
        self._interface, self._layer = interface, layer

    def run(
        self, inputs: "Mapping[str, Array]", axes: Mapping[str, int], into: "Mapping[str, Array]"
    ) -> "dict[str, Array]":
        import torch

        check_on_cpu("eager", inputs)
        of_torch = is_torch(inputs[self._interface.main_input])
        feeds = inputs if of_torch else {n: to_torch(to_numpy(x)) for n, x in inputs.items()}
        with torch.no_grad(), failures("PyTorch"):
            values = self._layer(**feeds)
        names = [tensor.name for tensor in self._interface.outputs]
        outputs = dict(zip(names, values, strict=False))  # without a cache, the first only
        if not of_torch:
            outputs = {n: to_numpy(x) for n, x in outputs.items()}
        return written(outputs, into)


RUNTIMES = (EagerRuntime(),)

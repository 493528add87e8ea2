"""Eager PyTorch on the CPU, with the weights that lie in the artifact's file."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from rope_export.arrays import check_on_cpu, is_torch, to_numpy, to_torch
from rope_export.artifacts.artifact import Artifact
from rope_export.artifacts.manifest import Manifest
from rope_export.errors import failures
from rope_export.runtimes import Missing, Session, written

if TYPE_CHECKING:
    from rope_export.attention.layer import RotaryAttention
    from rope_export.runtimes import Array


class Eager(Missing):
    name = "eager"
    needs: ClassVar[Mapping[str, str]] = {"torch": "export", "onnx": "export"}

    def unavailable(self, manifest: Manifest | None = None) -> str | None:
        return self.missing()

    def open(self, artifact: Artifact, threads: int | None = None) -> Session:
        """threads: torch's own, which are the process's; not changed here."""
        from rope_export.artifacts.deployed import file_weights
        from rope_export.attention.layer import RotaryAttention
        from rope_export.spec import AttentionSpec

        spec = AttentionSpec.from_json(artifact.manifest.spec)
        layer = RotaryAttention.from_weights(spec, file_weights(artifact))
        return EagerSession(artifact.manifest, layer)


class EagerSession(Session):
    """A RotaryAttention behind the contract of an artifact."""

    whole_capacity: ClassVar[bool] = True

    def __init__(self, manifest: Manifest, layer: "RotaryAttention") -> None:
        super().__init__(manifest)
        self._layer = layer

    def _run(
        self, inputs: Mapping[str, "Array"], axes: Mapping[str, int], into: Mapping[str, "Array"]
    ) -> dict[str, "Array"]:
        import torch

        check_on_cpu("eager", inputs)
        of_torch = is_torch(inputs["hidden_states"])
        feeds = inputs if of_torch else {n: to_torch(to_numpy(x)) for n, x in inputs.items()}
        with torch.no_grad(), failures("PyTorch"):
            values = self._layer(**feeds)
        names = [tensor.name for tensor in self.outputs]
        outputs = dict(zip(names, values, strict=False))  # without a cache, the first only
        if not of_torch:
            outputs = {n: to_numpy(x) for n, x in outputs.items()}
        return written(outputs, into)


RUNTIMES = (Eager(),)

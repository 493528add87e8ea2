"""An attention layer as a subject: eager is RotaryAttention, the reference a ReferenceLayer."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch

from rope_export.arrays import to_numpy, to_torch
from rope_export.artifacts.artifact import Artifact
from rope_export.artifacts.deployed import read_model
from rope_export.artifacts.folder import Folder, model_hashes
from rope_export.artifacts.manifest import ModelFacts
from rope_export.attention.layer import RotaryAttention
from rope_export.interface import Interface
from rope_export.parity.cases import Case, regular_cases
from rope_export.parity.comparison import Arrays
from rope_export.parity.layer.call import LayerExpected
from rope_export.parity.layer.inputs import layer_inputs
from rope_export.parity.layer.inv_freq import frequencies
from rope_export.parity.layer.limits import slot_limits
from rope_export.parity.layer.properties import layer_properties
from rope_export.parity.layer.reading import ask_transformers
from rope_export.parity.layer.reference import ReferenceLayer
from rope_export.parity.layer.visible import revealing_calls
from rope_export.parity.layer.weights import Weights, true_weights
from rope_export.parity.locate.layer import LayerLocator
from rope_export.parity.metrics import errors
from rope_export.parity.onnx_file.file import OnnxFile
from rope_export.parity.onnx_file.opened import layer_beside
from rope_export.parity.report.result import Report
from rope_export.parity.sessions import open_on
from rope_export.parity.subject import (
    Call,
    Failures,
    Property,
    Request,
    Revealing,
    Subject,
    Whereabouts,
)
from rope_export.parity.subjects.opening import origin_path
from rope_export.sessions import Session
from rope_export.spec import AttentionSpec


class LayerSubject(Subject):
    """One exported layer.

    layer: the reference. rough: the reference with the roundings of a runtime's kernels, which may
    be more than eager's.
    """

    def __init__(
        self, artifact: Artifact, spec: AttentionSpec, weights: Weights, request: Request
    ) -> None:
        self.artifact, self.spec, self.weights, self.request = artifact, spec, weights, request
        self.layer = self._reference(weights.tensors)
        self.rough = self.layer.rounding(_int8_blocks(artifact.manifest))

    @classmethod
    def of(cls, artifact: Artifact, request: Request) -> "LayerSubject":
        """Raises: CheckpointError and ArtifactError if the weights cannot be had."""
        spec = AttentionSpec.from_json(artifact.facts.spec)
        weights = true_weights(artifact, spec, request.source, request.seed, request.adapter)
        return cls(artifact, spec, weights, request)

    @property
    def interface(self) -> Interface:
        return self.artifact.manifest.interface

    @property
    def dtype(self) -> str:
        return self.spec.dtype

    @property
    def runtimes(self) -> Sequence[str]:
        return self.artifact.manifest.runtimes

    def report(self) -> Report:
        path, adapter = (origin_path(x, self.request, self.artifact) for x in ("source", "adapter"))
        return Report(
            weights=self.weights.verdict,
            rows=self.weights.rows,
            reading=ask_transformers(self.spec, self.artifact.manifest.source, path, adapter),
        )

    def cases(self) -> Iterable[Case]:
        padding, first = self.interface.mask is not None, self.spec.first_position
        return regular_cases(self.interface.cache, padding=padding, first_position=first)

    def inputs(self, case: Case, seed: int) -> Arrays:
        return layer_inputs(case, self.layer, self.interface, seed)

    def expected(self, case: Case, inputs: Arrays) -> LayerExpected:
        trace = self.layer(inputs)
        return LayerExpected(
            interface=self.interface,
            outputs=trace.outputs,
            starts=trace.starts,
            sequence=case.sequence,
            attended=trace.attended,
            trace=trace,
            layer=self.layer,
            rough=self.rough,
            total=case.total,
        )

    def eager(self, inputs: Arrays) -> Arrays:
        values = self._eager(**{name: to_torch(value) for name, value in inputs.items()})
        names = [tensor.name for tensor in self.interface.outputs]
        return {name: to_numpy(value) for name, value in zip(names, values, strict=False)}

    def open(self, runtime: str) -> Session:
        return open_on(self.artifact, runtime, self.request.threads)

    def beside(self, file: OnnxFile, runtime: str) -> Session:
        return layer_beside(file, self.spec, self.interface, dict(self.request.maps), runtime)

    def record(self, evidence: Mapping[str, Any]) -> str | None:
        return self.artifact.record(parity={**evidence, "files": model_hashes(self.artifact)})

    def scores(self, case: Case) -> int:
        return self.spec.heads * super().scores(case)

    def properties(self, seed: int) -> Iterable[Property]:
        return layer_properties(self.layer, self.rough, self.interface, seed)

    def revealing(self, prepared: Callable[[Case], Call]) -> Revealing:
        limits = slot_limits(self.artifact)
        return revealing_calls(self.layer, self.rough, self.interface, prepared, limits)

    def locate(self, failures: Failures, prepared: Callable[[Case], Call]) -> Whereabouts:
        locator = LayerLocator(
            self._eager,
            lambda: read_model(self.artifact),
            prepared,
            lambda: slot_limits(self.artifact),
            self.request.threads,
        )
        return locator.locate(failures)

    def conclude(self, report: Report, seed: int) -> None:
        """Add how far quantized weights take the output from that of the source's own, both in
        float64, on 64 tokens of two rows."""
        if self.weights.original is not None:
            inputs = self.inputs(Case(batch=2, sequence=64), seed)
            expected = self._reference(self.weights.original)(inputs).output
            report.quantization_error = errors(self.layer(inputs).output - expected, expected)

    @cached_property
    def _eager(self) -> RotaryAttention:
        return RotaryAttention.from_weights(self.spec, self.weights.tensors)

    def _reference(self, tensors: Mapping[str, torch.Tensor]) -> ReferenceLayer:
        weights = {name: to_numpy(tensor.double()) for name, tensor in tensors.items()}
        return ReferenceLayer(self.spec, weights, frequencies(self.spec))


def _int8_blocks(manifest: ModelFacts) -> dict[str, int]:
    """How many features share a scale, by the projection whose kernel rounds them to int8."""
    quantization = manifest.quantization
    if quantization is None or quantization.accuracy_level != 4:
        return {}
    return {
        name.removesuffix("_proj.weight"): facts.block_size or quantization.block_size
        for name, facts in manifest.weights.items()
        if facts.scales is not None
    }


def fits(opened: Folder) -> bool:
    """Whether this file has the subject of what was opened."""
    return isinstance(opened, Artifact)


make_subject = LayerSubject.of

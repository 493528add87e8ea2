"""An attention layer in an ONNX file that somebody else made, as a subject."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from rope_export.arrays import to_torch
from rope_export.checkpoints import open_model
from rope_export.errors import RopeExportError
from rope_export.interface import Interface, attention_interface
from rope_export.parity.cases import Case, regular_cases
from rope_export.parity.layer.limits import slot_limits_of
from rope_export.parity.layer.properties import layer_properties
from rope_export.parity.layer.reading import ask_transformers
from rope_export.parity.layer.visible import revealing_calls
from rope_export.parity.layer.weights import Weights
from rope_export.parity.onnx_file.deployed import deployed_layer
from rope_export.parity.onnx_file.facts import bounded_dtype
from rope_export.parity.onnx_file.file import OnnxFile
from rope_export.parity.onnx_file.int8 import rounds_after_dequantizing
from rope_export.parity.onnx_file.layer_faults import layer_causes
from rope_export.parity.onnx_file.layer_names import match_layer
from rope_export.parity.onnx_file.opened import by_position, layer_beside, layer_session, sizes_of
from rope_export.parity.onnx_file.runner import start
from rope_export.parity.onnx_file.weights import file_weights
from rope_export.parity.report.result import Report
from rope_export.parity.subject import (
    Call,
    Failures,
    Property,
    Request,
    Revealing,
    Whereabouts,
)
from rope_export.parity.subjects.layer import LayerSubject
from rope_export.sessions import Session


class FileLayerSubject(LayerSubject):
    """Its reference and eager are those of the source's layer.

    Raises: UnavailableError if the file's tensors cannot be matched.
    """

    def __init__(self, file: OnnxFile, request: Request, index: int) -> None:
        self.file, self.request = file, request
        self.path = str(request.source or request.spec)
        spec = open_model(self.path, seed=request.seed).layer(index).spec
        self.matched = match_layer(file, spec, dict(request.maps))
        dtype: Any = bounded_dtype(file, self.matched.inputs["hidden_states"])
        source = open_model(
            self.path, dtype=dtype, seed=request.seed, adapter=request.adapter
        ).layer(index)
        self.facts, self.spec = source.facts, replace(source.spec, dtype=dtype)
        self.weights, blocks = self._weights(source.weights())
        self.layer = self._reference(self.weights.tensors)
        self.rough = self.layer.rounding(blocks)
        kept = "fixed" if self.matched.fixed else "growing"
        self._interface = attention_interface(
            self.spec,
            cache=kept if self.matched.caches else "none",
            padding="attention_mask" in self.matched.inputs,
        )
        self.unsupported: dict[str, set[str]] = {}

    @property
    def interface(self) -> Interface:
        return self._interface

    @property
    def runtimes(self) -> Sequence[str]:
        return ("onnxruntime",)

    @property
    def by_position(self) -> bool:
        """Whether the file takes positions, or the angles that are made of them."""
        return by_position(self.matched)

    def report(self) -> Report:
        report = Report(
            weights=self.weights.verdict,
            rows=self.weights.rows,
            reading=ask_transformers(self.spec, self.facts, self.path, self.request.adapter),
        )
        if self.matched.others:
            names = ", ".join(self.matched.others)
            report.left_out.append(f"outputs that were not looked at: {names}.")
        if rounds_after_dequantizing(self.file):
            report.left_out.append(
                "where the file runs as it is, onnxruntime rounds what is multiplied with weights "
                "of DequantizeLinear to int8; it was judged with "
                "session.qdq_matmulnbits_accuracy_level=1, which does not."
            )
        if "cos" in self.matched.inputs:
            report.left_out.append(
                "cos and sin are inputs of the file: they were fed as the source's rotation has "
                "them, and how the caller computes them was not looked at."
            )
        return report

    def cases(self) -> Iterable[Case]:
        padding, first = self.interface.mask is not None, self.spec.first_position
        every = regular_cases(self.interface.cache, padding=padding, first_position=first)
        return [case for case in every if self._takes(case)]

    def open(self, runtime: str) -> Session:
        inner = start(self.file, runtime, self.request.threads)
        return layer_session(inner, self.matched, self.spec, self.interface, self.facts)

    def beside(self, file: OnnxFile, runtime: str) -> Session:
        return layer_beside(file, self.spec, self.interface, {}, runtime)

    def record(self, evidence: Mapping[str, Any]) -> str | None:
        """Nothing is kept beside a file that is not ours."""
        return None

    def properties(self, seed: int) -> Iterable[Property]:
        if not self.by_position or sizes_of(self.matched) != (None, None):
            return ()
        return layer_properties(self.layer, self.rough, self.interface, seed)

    def revealing(self, prepared: Callable[[Case], Call]) -> Revealing:
        limits = slot_limits_of(self.file.model)
        found = revealing_calls(self.layer, self.rough, self.interface, prepared, limits)
        return replace(found, calls=tuple(x for x in found.calls if self._takes(x.case)))

    def locate(self, failures: Failures, prepared: Callable[[Case], Call]) -> Whereabouts:
        """Nothing: a file that is not ours does not tell the names of its inner tensors."""
        return Whereabouts()

    def conclude(self, report: Report, seed: int) -> None:
        """Add what was not supported, what quantization does, and the causes of what failed."""
        super().conclude(report, seed)
        for reason, cases in self.unsupported.items():
            report.left_out.append(f"{len(cases)} cases: not supported by its inputs, {reason}.")
        for runtime in sorted({row.runtime for row in report.rows if row.status == "failed"}):
            try:
                with self.open(runtime) as session:
                    layer_causes(self, session, report, runtime, seed)
            except RopeExportError:
                continue

    def _weights(self, tensors: dict[str, Tensor]) -> tuple[Weights, dict[str, int]]:
        """Those of the source, where the file has quantized them as it has them; without a source
        read from the file, in the shapes of drawn ones. And how many features share a scale, by the
        projection whose input is rounded to int8."""
        from_source = self.request.source is not None
        if not from_source:
            shapes = {name: tuple(x.shape) for name, x in tensors.items()}
            read = file_weights(self.file, shapes, layers=0, offset=())
            tensors = {name: to_torch(np.ascontiguousarray(x)) for name, x in read.items()}
        deployed, rows, blocks = deployed_layer(tensors, self.file, self.request.seed)
        weights = Weights(
            tensors=deployed,
            original=tensors if rows and from_source else None,
            verdict="proven" if from_source else "unproven",
            rows=rows if from_source else [],
        )
        return weights, blocks

    def _takes(self, case: Case) -> bool:
        """Whether the file's inputs can take a case; if not, why is noted."""
        batch, sequence = sizes_of(self.matched)
        capacity, reason = self.matched.capacity, None
        if batch is not None and case.batch != batch:
            reason = f"the batch is always {batch}"
        elif sequence is not None and case.sequence != sequence:
            reason = f"a call always has {sequence} tokens"
        elif case.lengths is not None and not self.matched.by_row:
            reason = "the rows of its caches have one length"
        elif capacity is not None and case.total + case.spare > capacity:
            reason = f"its caches have {capacity} slots"
        elif case.start != 0 and not self.by_position and self.spec.uses_positions:
            reason = "there are no positions"
        if reason is not None:
            self.unsupported.setdefault(reason, set()).add(case.name)
        return reason is None

"""A TensorRT engine as a subject: the model that it was built from, at its own corners too."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rope_export.artifacts.decoder import DecoderArtifact
from rope_export.artifacts.folder import Folder, model_hashes
from rope_export.engines.plan import Engine
from rope_export.interface import Interface
from rope_export.parity.cases import Case
from rope_export.parity.comparison import Arrays, Expected
from rope_export.parity.engine.corners import corner_cases
from rope_export.parity.engine.numbers import compared_numbers, structure_rows
from rope_export.parity.onnx_file.file import OnnxFile
from rope_export.parity.report.result import Report
from rope_export.parity.sessions import open_on
from rope_export.parity.subject import (
    Call,
    Failures,
    Property,
    Request,
    Revealing,
    Streamed,
    Subject,
    Whereabouts,
)
from rope_export.parity.subjects.decoder_engine import DecoderEngineSubject
from rope_export.parity.subjects.opening import subject_of
from rope_export.sessions import Session

AFFORDABLE = 2**26
"""Scores of one call that are compared unless asked for more: the float64 reference and its bound
hold several copies, half a gigabyte each."""


class EngineSubject(Subject):
    """model: the subject of the ONNX model. Its reference and eager are the engine's too."""

    def __init__(self, engine: Engine, model: Subject, request: Request) -> None:
        self.engine, self.model, self.request = engine, model, request
        corners = corner_cases(engine.facts.profiles)
        self.corners = [x for x in corners if request.large or model.scores(x) <= AFFORDABLE]
        self.left_out = [
            f"corner {case.name} of profile {profile} was not compared: its "
            f"{model.scores(case):.1e} scores are more than {AFFORDABLE:.1e}; add `large`."
            for case, profile in corners.items()
            if case not in self.corners
        ]

    @property
    def interface(self) -> Interface:
        return self.model.interface

    @property
    def dtype(self) -> str:
        return self.model.dtype

    @property
    def runtimes(self) -> Sequence[str]:
        return self.engine.runtimes

    def report(self) -> Report:
        report = self.model.report()
        report.left_out += self.left_out
        report.rows += structure_rows(self.engine, self.request.seed)
        return report

    def cases(self) -> Iterable[Case]:
        return dict.fromkeys([*self.model.cases(), *self.corners])

    def inputs(self, case: Case, seed: int) -> Arrays:
        return self.model.inputs(case, seed)

    def expected(self, case: Case, inputs: Arrays) -> Expected:
        return self.model.expected(case, inputs)

    def eager(self, inputs: Arrays) -> Arrays:
        return self.model.eager(inputs)

    def open(self, runtime: str) -> Session:
        return open_on(self.engine, runtime, self.request.threads)

    def beside(self, file: OnnxFile, runtime: str) -> Session:
        return self.model.beside(file, runtime)

    def record(self, evidence: Mapping[str, Any]) -> str | None:
        return self.engine.record(parity={**evidence, "files": model_hashes(self.engine)})

    def properties(self, seed: int) -> Iterable[Property]:
        return self.model.properties(seed)

    def revealing(self, prepared: Callable[[Case], Call]) -> Revealing:
        return self.model.revealing(prepared)

    def locate(self, failures: Failures, prepared: Callable[[Case], Call]) -> Whereabouts:
        return self.model.locate(failures, prepared)

    def conclude(self, report: Report, seed: int) -> None:
        report.numbers = compared_numbers(self.engine, report)
        self.model.conclude(report, seed)


def fits(opened: Folder) -> bool:
    """Whether this file has the subject of what was opened."""
    return isinstance(opened, Engine)


def make_subject(engine: Engine, request: Request) -> EngineSubject | DecoderEngineSubject:
    """Raises: CheckpointError and ArtifactError if the weights cannot be had."""
    if isinstance(engine.artifact, DecoderArtifact):
        return DecoderEngineSubject(engine, engine.artifact, request)
    model = subject_of(engine.artifact, request)
    assert not isinstance(model, Streamed)
    return EngineSubject(engine, model, request)

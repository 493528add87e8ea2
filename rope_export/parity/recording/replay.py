"""A subject whose calls were recorded; what is judged, and by what, stays as it is."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rope_export.errors import InputError
from rope_export.interface import Interface
from rope_export.parity.cases import Case
from rope_export.parity.comparison import Arrays, Expected
from rope_export.parity.recording.files import Recording, checked_inputs
from rope_export.parity.report.result import Report
from rope_export.parity.subject import (
    Call,
    Failures,
    Property,
    Revealing,
    Streamed,
    Subject,
    Whereabouts,
)
from rope_export.sessions import Session

if TYPE_CHECKING:
    from rope_export.parity.onnx_file.file import OnnxFile


@dataclass(frozen=True, kw_only=True)
class RecordedCase(Case):
    """A call whose inputs lie in a file. title: its name there."""

    title: str

    @property
    def name(self) -> str:
        return self.title


class Replayed(Subject):
    """Another subject on recorded inputs: without its own cases, and without properties, since
    those ask for inputs of their own.

    Raises: InputError for calls that it does not take.
    """

    def __init__(self, subject: Subject, recording: Recording) -> None:
        self.subject, self.recording = subject, recording
        self._cases = [
            recorded_case(case, checked_inputs(recording, case, subject.interface), self.interface)
            for case in recording.cases
        ]

    @property
    def interface(self) -> Interface:
        return self.subject.interface

    @property
    def dtype(self) -> str:
        return self.subject.dtype

    @property
    def runtimes(self) -> Sequence[str]:
        return self.subject.runtimes

    def report(self) -> Report:
        report = self.subject.report()
        report.left_out.append(
            f"only calls of {self.recording.shown} were compared: {len(self._cases)}."
        )
        return report

    def cases(self) -> Iterable[Case]:
        return self._cases

    def inputs(self, case: Case, seed: int) -> Arrays:
        return self.recording.inputs(case.name)

    def expected(self, case: Case, inputs: Arrays) -> Expected:
        return self.subject.expected(case, inputs)

    def eager(self, inputs: Arrays) -> Arrays:
        return self.subject.eager(inputs)

    def open(self, runtime: str) -> Session:
        return self.subject.open(runtime)

    def beside(self, file: "OnnxFile", runtime: str) -> Session:
        return self.subject.beside(file, runtime)

    def record(self, evidence: Mapping[str, Any]) -> None:
        """Evidence is about whole runs."""

    def conclude(self, report: Report, seed: int) -> None:
        """What a whole run finds at its end is not to be had of some calls."""

    def locate(self, failures: Failures, prepared: Callable[[Case], Call]) -> Whereabouts:
        return self.subject.locate(failures, prepared)

    def properties(self, seed: int) -> Iterable[Property]:
        return ()

    def revealing(self, prepared: Callable[[Case], Call]) -> Revealing:
        return Revealing()


def replayed(subject: Subject | Streamed, path: str | None) -> Subject | Streamed:
    """The subject on the calls of a recording, where there is one. What is streamed reads them
    itself (`Request.replay`).

    Raises: InputError for a recording without inputs.
    """
    if path is None:
        return subject
    recording = Recording(path, subject.interface)
    if not any(map(recording.inputs, recording.cases)):
        raise InputError(
            f"{recording.shown}: holds outputs without their inputs; give those with `replay`."
        )
    return subject if isinstance(subject, Streamed) else Replayed(subject, recording)


def recorded_case(name: str, inputs: Arrays, interface: Interface) -> RecordedCase:
    """The case that a call's inputs are, by their shapes and lengths."""
    batch, sequence = inputs[interface.main_input].shape[:2]
    slots = 0
    if interface.caches:
        pair = interface.caches[0]
        slots = inputs[pair.input].shape[pair.axis]
    lengths: tuple[int, ...] | None = None
    past, spare = slots, 0
    if interface.lengths is not None:
        rows = inputs.get(interface.lengths, np.zeros(batch, np.int64))
        lengths = tuple(int(x) for x in rows)
        past = max(lengths)
        spare = slots - past - sequence
    return RecordedCase(
        title=name, batch=batch, sequence=sequence, past=past, lengths=lengths, spare=spare
    )

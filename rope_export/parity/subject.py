"""What the harness asks of a subject: a layer, an engine, a decoder, any model that can be judged.

The judge knows an interface, inputs and outputs by name, and bounds on errors. Whatever a subject
is made of, how its reference computes, and what eager is, stays in the subject's own file.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from rope_export.errors import InputError
from rope_export.interface import Interface
from rope_export.parity.bounds import Bounds, tolerance
from rope_export.parity.cases import Case
from rope_export.parity.comparison import Arrays, Expected
from rope_export.parity.report.located import Located
from rope_export.parity.report.result import Report
from rope_export.parity.rows import within
from rope_export.sessions import Session

if TYPE_CHECKING:
    from rope_export.parity.onnx_file.file import OnnxFile

Run = Callable[[Arrays], Arrays]
Progress = Callable[[str, float], None]


@dataclass(frozen=True, kw_only=True)
class Request:
    """The arguments of `verify` besides the artifact and the runtimes.

    cases: names of those that are compared, if not all. spec: the config of a file that others
    made, where its source is not there. layer: of such a file, which one it holds, if it is no
    whole decoder. maps: names of its tensors, (ours, theirs). threads: that a call on a runtime may
    use. replay: the file whose calls are compared in place of the subject's own.
    """

    source: str | None = None
    adapter: str | None = None
    seed: int = 0
    large: bool = False
    cases: tuple[str, ...] = ()
    spec: str | None = None
    layer: int | None = None
    maps: tuple[tuple[str, str], ...] = ()
    threads: int | None = None
    replay: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Call:
    """One call before a runtime has seen it: its inputs, what the reference and eager make of it,
    and what the errors of each output may be."""

    case: Case
    inputs: Arrays
    expected: Expected
    eager: Arrays
    eager_errors: Mapping[str, Mapping[str, float]]
    bounds: Mapping[str, Bounds]

    @cached_property
    def ceilings(self) -> Mapping[str, np.ndarray]:
        """How far rounding alone may take each number of eager's outputs, where that is known."""
        return self.expected.ceilings()

    def tolerance(self, output: str, metric: str) -> float:
        """What the error of a runtime may be."""
        return tolerance(self.eager_errors[output][metric], self.bounds[output].floors[metric])

    @property
    def eager_sound(self) -> bool:
        """Whether eager's errors are rounding."""
        return all(
            within(error, self.bounds[output].ceilings[metric])
            for output, of in self.eager_errors.items()
            for metric, error in of.items()
        )


@dataclass(frozen=True, kw_only=True)
class Property:
    """Two sides of one equality that must hold.

    output: of which the sides are computed. sides: both in float64, with any runtime's outputs.
    bounds: what the error of the left side may be, by the values of the right one.
    """

    name: str
    output: str
    sides: Callable[[Run], tuple[np.ndarray, np.ndarray]]
    bounds: Callable[[np.ndarray], Bounds]


@dataclass(frozen=True, kw_only=True)
class Revealing:
    """calls: those on which every feature shows. not_visible: each fault that none can show, by the
    "feature", with the "reason"."""

    calls: tuple[Call, ...] = ()
    not_visible: tuple[dict[str, str], ...] = ()


Failures = Mapping[str, Mapping[Case, float]]
"""By the runtime the cases in which a row failed, with the share of its tolerance that the worst
used."""


@dataclass(frozen=True, kw_only=True)
class Whereabouts:
    """What was located, and one line for what was not looked for."""

    located: tuple[Located, ...] = ()
    notes: tuple[str, ...] = ()


class Outputs(Protocol):
    """What a runtime made of calls, as a file has it."""

    def of(self, case: str) -> Arrays | None:
        """The outputs of one call by name, or nothing where the file has none."""


Side = Session | Outputs
"""What gives outputs: by running calls, or from a file."""

Record = Callable[[str, Arrays, Mapping[str, Arrays], Mapping[str, Mapping[str, float]]], None]
"""Keeps one call: the case, its inputs, the outputs by runtime, the tolerances by output and
metric."""


class Streamed(ABC):
    """Something that is judged in its own order, so that it need not be in memory as a whole."""

    @property
    @abstractmethod
    def interface(self) -> Interface:
        """The names of the tensors, and which are one cache."""

    @property
    @abstractmethod
    def runtimes(self) -> Sequence[str]:
        """The runtimes that it is made for, the best first."""

    @abstractmethod
    def report(self) -> Report:
        """A report with what is known before anything has run."""

    @abstractmethod
    def open(self, runtime: str) -> Session:
        """A session on one runtime.

        Raises: UnavailableError with the reason if it cannot run here.
        """

    @abstractmethod
    def prove(
        self,
        sessions: Mapping[str, Side],
        report: Report,
        seed: int,
        progress: Progress,
        *,
        against: Sequence[str] = (),
        record: Record | None = None,
    ) -> None:
        """Write every row of the sessions, by runtime, into the report.

        against: names among these, with which every other one is compared too. record: is given
        every call of the whole model.
        """

    @abstractmethod
    def beside(self, file: "OnnxFile", runtime: str) -> Session:
        """A session on a file that somebody else made of the same.

        Raises: UnavailableError if its tensors cannot be matched, or it cannot run here.
        """

    @abstractmethod
    def record(self, evidence: Mapping[str, Any]) -> str | None:
        """Keep what was found beside the subject. Returns: why it could not be kept, or nothing."""


class Subject(Protocol):
    """Something that is judged.

    interface: the names of the tensors, and which are one cache. dtype: of the computation.
    runtimes: that it is made for, the best first.
    """

    @property
    def interface(self) -> Interface: ...

    @property
    def dtype(self) -> str: ...

    @property
    def runtimes(self) -> Sequence[str]: ...

    def report(self) -> Report:
        """A report with what is known before any call: of weights, source and structure."""

    def cases(self) -> Iterable[Case]:
        """The calls that it is judged on."""

    def inputs(self, case: Case, seed: int) -> Arrays:
        """The inputs of one call."""

    def expected(self, case: Case, inputs: Arrays) -> Expected:
        """What the float64 reference computes."""

    def eager(self, inputs: Arrays) -> Arrays:
        """What eager PyTorch computes: every output by name."""

    def open(self, runtime: str) -> Session:
        """A session on one runtime.

        Raises: UnavailableError with the reason if it cannot run here.
        """

    def beside(self, file: "OnnxFile", runtime: str) -> Session:
        """A session on a file that somebody else made of the same, which takes the same calls.

        Raises: InputError and UnavailableError for a file that does not, or cannot run here.
        """
        raise InputError(f"`against`={file.path}: no file of others is compared with this.")

    def record(self, evidence: Mapping[str, Any]) -> str | None:
        """Keep what was found beside the subject.

        Returns: why it could not be kept, or nothing.
        """

    def scores(self, case: Case) -> int:
        """Attention scores of one call, which decide what memory its reference takes."""
        return case.batch * case.sequence * (case.total + case.spare)

    def properties(self, seed: int) -> Iterable[Property]:
        """Equalities that must hold of it, whatever its weights."""
        return ()

    def revealing(self, prepared: Callable[[Case], Call]) -> Revealing:
        """Further calls, by which each of its features shows. prepared: makes a call of a case."""
        return Revealing()

    def locate(self, failures: Failures, prepared: Callable[[Case], Call]) -> Whereabouts:
        """The first wrong tensor in cases that failed. prepared: makes a call of a case."""
        return Whereabouts()

    def conclude(self, report: Report, seed: int) -> None:
        """Add to the report what is known once every call was judged."""

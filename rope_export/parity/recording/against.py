"""The other side of a comparison: a runtime, an artifact, an engine, or recorded outputs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rope_export import paths
from rope_export.artifacts.folder import Folder, holding
from rope_export.errors import InputError, UnavailableError
from rope_export.interface import Interface, TensorType
from rope_export.parity.comparison import Arrays
from rope_export.parity.recording.files import Recording, is_recording
from rope_export.parity.report.result import Report
from rope_export.parity.sessions import open_on
from rope_export.parity.subject import Side, Streamed, Subject
from rope_export.runtimes import all_runtimes
from rope_export.sessions import Session

if TYPE_CHECKING:
    from rope_export.parity.onnx_file.file import OnnxFile


@dataclass(frozen=True, kw_only=True)
class RecordedOutputs:
    """What a runtime made of calls, as a file has it."""

    recording: Recording
    runtime: str

    def of(self, case: str) -> Arrays | None:
        """The outputs of one call by name, or nothing where the file has none."""
        return self.recording.outputs(case, self.runtime)


class Other:
    """What is compared beside an artifact, and with every runtime of it.

    against: the name of a runtime, or the path of an artifact, an engine, an .onnx file or a
    recording. read_file: of an .onnx file.
    Raises: InputError for what is none of these.
    """

    def __init__(self, against: str | Path, read_file: "Callable[[Path], OnnxFile]") -> None:
        self.shown = paths.shown(against)
        self.runtime = str(against) if str(against) in all_runtimes() else None
        self.path = None if self.runtime is not None else Path(against)
        self.recorded = self.path is not None and is_recording(self.path)
        self._folder: Folder | None = None
        self._file: OnnxFile | None = None
        if self.path is None or self.recorded:
            return
        if self.path.suffix == ".onnx" and not self.path.is_dir():
            self._file = read_file(paths.existing_file(self.path))
            return
        if not paths.readable(self.path).is_dir():
            raise InputError(
                f"`against`={self.shown}: is no folder of an artifact or an engine, no .onnx, "
                f".npz or .json file, and no runtime ({', '.join(all_runtimes())})."
            )
        self._folder = holding(self.path)

    def opened(
        self,
        subject: Subject | Streamed,
        sessions: Mapping[str, Session],
        report: Report,
        stack: ExitStack,
    ) -> dict[str, Side]:
        """Its sides by their names in a report. subject: this side. sessions: this side's, on whose
        runtimes a folder or a file is opened too, an engine with its plan as well; runtimes that
        cannot are reported as skipped.

        Raises: InputError for one that has other tensors; UnavailableError for one that none of
            these runtimes can run, or that is a runtime which is not here.
        """
        interface = subject.interface
        if self.recorded:
            whole = not isinstance(subject, Streamed)
            return dict(self._outputs(interface, interface.outputs if whole else ()))
        if self._folder is None and self._file is None:
            if self.runtime not in ("eager", *sessions):
                reasons = {x["runtime"]: x["reason"] for x in report.skipped}
                raise UnavailableError(f"runtime {self.runtime!r}: {reasons.get(self.shown)}")
            return {}
        sides: dict[str, Side] = {}
        runtimes = dict.fromkeys(sessions)
        if self._folder is not None:
            self._check(self._folder.manifest.interface, interface)
            if self._folder.artifact is not self._folder:  # an engine has a plan besides
                runtimes |= dict.fromkeys(self._folder.runtimes[:1])
        for runtime in runtimes:
            name = f"{runtime} of {self.shown}"
            try:
                sides[name] = stack.enter_context(self._open(subject, runtime))
            except UnavailableError as error:
                report.skipped.append({"runtime": name, "reason": str(error)})
        if sessions and not sides:
            reason = report.skipped[-1]["reason"].removeprefix(f"{self.shown}: ")
            raise UnavailableError(f"{self.shown}: {reason}")
        return sides

    def _open(self, subject: Subject | Streamed, runtime: str) -> Session:
        if self._file is not None:
            return subject.beside(self._file, runtime)
        assert self._folder is not None
        return open_on(self._folder, runtime)

    def _check(self, theirs: Interface, ours: Interface) -> None:
        for own, other in ((ours.inputs, theirs.inputs), (ours.outputs, theirs.outputs)):
            if own != other:
                raise InputError(
                    f"`against`={self.shown}: has other tensors, {', '.join(map(str, other))}, "
                    f"not {', '.join(map(str, own))}. Compare each with eager PyTorch, by itself."
                )

    def _outputs(
        self, interface: Interface, needed: Sequence[TensorType]
    ) -> Iterator[tuple[str, Side]]:
        """The recorded outputs of each runtime. Raises: InputError where one is missing that is
        needed."""
        assert self.path is not None
        recording = Recording(self.path, interface)
        if not recording.runtimes:
            raise InputError(f"{recording.shown}: holds no outputs to compare with.")
        for runtime in recording.runtimes:
            for case in recording.cases:
                outputs = recording.outputs(case, runtime)
                missing = [x.name for x in needed if outputs and x.name not in outputs]
                if missing:
                    raise InputError(
                        f"{recording.shown}, {case} on {runtime}: has no {', '.join(missing)}, "
                        f"which the artifact gives."
                    )
            name = f"{runtime} of {recording.shown}"
            yield name, RecordedOutputs(recording=recording, runtime=runtime)

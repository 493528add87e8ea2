"""The verdict on a subject: every case, on every runtime, against eager PyTorch and a reference."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rope_export import paths
from rope_export.artifacts.folder import Folder, holding
from rope_export.checkpoints import NO_ADAPTER
from rope_export.errors import InputError, UnavailableError
from rope_export.parity.cases import check_chosen, chosen
from rope_export.parity.judge import Judge
from rope_export.parity.onnx_file.file import OnnxFile
from rope_export.parity.recording.against import Other
from rope_export.parity.recording.files import is_recording
from rope_export.parity.recording.pairs import check_options, compare_recordings
from rope_export.parity.recording.recorder import Recorder, check_recording, recording
from rope_export.parity.recording.replay import replayed
from rope_export.parity.report.baseline import FACTOR, Baseline, check_factor
from rope_export.parity.report.identity import identified
from rope_export.parity.report.result import Report
from rope_export.parity.report.spread import Spread
from rope_export.parity.rows import Row
from rope_export.parity.subject import Request, Revealing, Side, Streamed, Subject
from rope_export.parity.subjects.opening import subject_of
from rope_export.runtimes import find_runtime
from rope_export.sessions import Session

Progress = Callable[[str, float], None]


def verify(
    artifact: str | Path | Folder,
    *,
    source: str | Path | None = None,
    adapter: str | Path | None = None,
    runtimes: Sequence[str] | None = None,
    seed: int = 0,
    large: bool = False,
    cases: Sequence[str] = (),
    spread: bool = False,
    baseline: str | Path | None = None,
    factor: float | None = None,
    against: str | Path | None = None,
    record: str | Path | None = None,
    replay: str | Path | None = None,
    spec: str | Path | None = None,
    layer: int | None = None,
    maps: Mapping[str, str] | None = None,
    threads: int | None = None,
    progress: Progress = lambda step, done: None,
) -> Report:
    """Compare an artifact with eager PyTorch and a float64 reference; its evidence records it, if
    anything was compared.

    Of an engine the ONNX model is compared at the corners of its profiles as well, and its plan
    where the GPU is that it is for: until then the report's numbers are unverified.

    A file that others made is compared with transformers' model of its source: logits, and what
    it caches and generates; of what is wrong the report names the cause. Two recordings are
    compared with each other.

    artifact: its folder, an open Artifact or Engine, any .onnx file, or a recording. source: the
    checkpoint its weights come from, if it is not where it was when it was exported. adapter: the
    one that was merged into them, if it has moved. runtimes: names to compare; without, those the
    artifact is made for that are available here. seed: of the drawn inputs. large: also those
    corners of an engine that take minutes and gigabytes. cases: names of those to compare; without,
    all. spread: whether the report is to keep where errors lie, for its plots. baseline: the JSON
    of an earlier report of this artifact; the verdict is "failed" where an error is more than
    `factor` times what it was, 2 unless given. against: what is compared as well, and with every
    runtime: another runtime, artifact, engine or .onnx file, or recorded outputs. record: the .npz
    file that gets inputs and outputs of every call. replay: the file whose inputs are the calls;
    Polygraphy's JSON too. spec, layer, maps: of a file that others made, its config where the
    source is not there; the layer of the source that it holds, if it is no whole decoder; names of
    its tensors by ours, where they are not matched by themselves. threads: that a call on a runtime
    may use; all cores unless given. progress: called with the name of each case and the share that
    is done.
    Raises: ArtifactError and CheckpointError for what cannot be read; UnavailableError if a runtime
        that was asked for does not exist; InputError for a case that does not, a baseline of
        something else, or an argument that says nothing here.
    """
    check_factor(factor, baseline)
    if seed < 0:
        raise InputError(f"`seed`={seed}: it must be 0 or more.")
    place = None if record is None else check_recording(record)
    earlier = None if baseline is None else Baseline(baseline, seed)
    runtimes, cases = None if runtimes is None else _several(runtimes), _several(cases)
    if not isinstance(artifact, Folder) and is_recording(artifact):
        options: dict[str, object] = {"source": source, "adapter": adapter}
        options |= {"record": record, "replay": replay}
        options |= {"spec": spec, "layer": layer, "maps": maps or None, "threads": threads}
        check_options(artifact, options | {"seed": seed or None, "large": large or None})
        report = compare_recordings(artifact, against, runtimes=runtimes, cases=cases)
    else:
        other = None if against is None else Other(against, OnnxFile.read)
        calls = other.path if replay is None and other is not None and other.recorded else replay
        request = Request(
            source=None if source is None else str(source),
            adapter=None if adapter is None else str(adapter),
            seed=seed,
            large=large,
            cases=cases,
            spec=None if spec is None else str(spec),
            layer=layer,
            maps=tuple((maps or {}).items()),
            threads=threads,
            replay=None if calls is None else str(calls),
        )
        # Its files are in memory from here on: the verdict is about them, whatever replaces them.
        opened = _opened(artifact)
        own = None if isinstance(opened, OnnxFile) else _identified(opened, request)
        if earlier is not None:
            earlier.check(own)
        subject = replayed(subject_of(opened, request), request.replay)
        with ExitStack() as stack:
            report = compare(
                subject,
                runtimes=runtimes,
                seed=seed,
                cases=cases,
                spread=spread,
                other=other,
                recorder=None if place is None else stack.enter_context(recording(place)),
                progress=progress,
            )
        report.artifact = own
    if earlier is not None:
        times = FACTOR if factor is None else factor
        report.growth = earlier.growth(report.rows, times, runtimes=runtimes, cases=cases)
    return report


def _several(names: Sequence[str]) -> tuple[str, ...]:
    """Names, of which one may be given alone."""
    return (names,) if isinstance(names, str) else tuple(names)


def _identified(folder: Folder, request: Request) -> dict[str, str]:
    """What a folder of ours is, which it tells itself.

    Raises: InputError for an argument that tells otherwise.
    """
    for name, value in (("spec", request.spec), ("maps", request.maps or None)):
        if value is not None:
            raise InputError(
                f"`{name}`: {paths.shown(folder.path)} tells itself what it computes and what its "
                f"tensors are. Leave it out."
            )
    source = folder.manifest.source
    if request.layer not in (None, source.get("layer")):
        held = f"layer {source['layer']}" if "layer" in source else "a whole decoder"
        raise InputError(
            f"`layer`={request.layer}: {paths.shown(folder.path)} holds {held}. Leave it out, or "
            f"export that layer."
        )
    if request.adapter not in (None, NO_ADAPTER) and "adapter" not in source:
        raise InputError(
            f"`adapter`={request.adapter}: none was merged into {paths.shown(folder.path)}. Leave "
            f"it out, or export with it."
        )
    return identified(folder)


def _opened(artifact: str | Path | Folder) -> Folder | OnnxFile:
    if isinstance(artifact, Folder):
        return artifact.hold()
    path = paths.readable(artifact)
    if path.suffix == ".onnx" and not path.exists():
        raise InputError(f"{paths.shown(path)}: there is no such file.")
    return OnnxFile.read(path) if path.is_file() else holding(path)


def compare(
    subject: Subject | Streamed,
    *,
    runtimes: Sequence[str] | None = None,
    seed: int = 0,
    cases: Sequence[str] = (),
    spread: bool = False,
    other: Other | None = None,
    recorder: Recorder | None = None,
    progress: Progress = lambda step, done: None,
) -> Report:
    """The verdict on a subject, whatever it is; its evidence records it, if all was compared and
    nothing else.

    runtimes, seed, cases, spread, progress: as for `verify`. other: what is compared as well.
    recorder: is given every call.
    """
    progress("reading the source", 0.0)
    report = subject.report()
    report.spread = Spread() if spread else None
    # What is not finite fails its row, without a word from numpy.
    with ExitStack() as stack, _exact_eager(), np.errstate(over="ignore", invalid="ignore"):
        sessions = _open(subject, runtimes, report, stack)
        sides: dict[str, Side] = {}
        if other is not None:
            if other.runtime is not None and other.runtime not in ("eager", *sessions):
                sessions |= _open(subject, (other.runtime,), report, stack)
            sides = other.opened(subject, sessions, report, stack)
        against = tuple(sides) or _named(other, sessions)
        if isinstance(subject, Streamed):
            subject.prove(
                {**sessions, **sides},
                report,
                seed,
                progress,
                against=against,
                record=None if recorder is None else recorder.add,
            )
        else:
            judge = Judge(
                subject=subject,
                sessions={**sessions, **sides},
                report=report,
                seed=seed,
                against=against,
                recorder=recorder,
            )
            _judge_all(judge, subject, cases, progress)
            judge.finish()
            if judge.failed:
                progress("looking for the first wrong tensor", 1.0)
                found = subject.locate(judge.failed, judge.prepared)
                report.located += found.located
                report.left_out += found.notes
    if not isinstance(subject, Streamed) and not cases:
        subject.conclude(report, seed)
    whole = not cases and other is None
    if report.status != "nothing compared" and whole:  # which must not hide an earlier verdict
        report.keep(subject.record(_evidence(report, seed)))
    return report


def _named(other: Other | None, sessions: Mapping[str, Session]) -> tuple[str, ...]:
    """The runtime that others are compared with, if one was named and runs here."""
    name = None if other is None else other.runtime
    return () if name is None or name not in ("eager", *sessions) else (name,)


def _judge_all(judge: Judge, subject: Subject, only: Sequence[str], progress: Progress) -> None:
    """Every case, every call that shows a feature, and every property; or those of them that were
    asked for by name.

    Raises: InputError for a name that none has.
    """
    every, properties = list(subject.cases()), list(subject.properties(judge.seed))
    names = [*(case.name for case in every), *(equality.name for equality in properties)]
    revealing = Revealing()
    if not only or not set(only) <= set(names):
        progress("looking for calls that show every feature", 0.0)
        revealing = subject.revealing(judge.prepared)
        judge.report.not_visible += revealing.not_visible
    check_chosen(only, [*names, *(call.case.name for call in revealing.calls)])
    cases = [case for case in every if chosen(case.name, only)]
    properties = [equality for equality in properties if chosen(equality.name, only)]
    count = len(cases) + len(properties)
    for at, case in enumerate(cases):
        progress(case.name, at / count)
        judge.judge(judge.prepared(case))
    for call in revealing.calls:
        if call.case not in every and chosen(call.case.name, only):
            judge.judge(call)
    for at, equality in enumerate(properties, len(cases)):
        progress(equality.name, at / count)
        judge.property(equality)


def _open(
    subject: Subject | Streamed, names: Sequence[str] | None, report: Report, stack: ExitStack
) -> dict[str, Session]:
    """A session on each runtime that can run the subject; the others are reported as skipped.

    Without names, the slow reference evaluator is used only where nothing else can run.
    Raises: UnavailableError if a name is no runtime's.
    """
    for name in names or ():
        find_runtime(name)
    sessions: dict[str, Session] = {}
    for name in names or subject.runtimes:
        if names is None and name == "reference" and sessions:
            continue
        try:
            sessions[name] = stack.enter_context(subject.open(name))
        except UnavailableError as error:
            report.skipped.append({"runtime": name, "reason": str(error)})
    return sessions


@contextmanager
def _exact_eager() -> Iterator[None]:
    """Runs the block with eager matrix products in full precision, whatever the process had set."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def _evidence(report: Report, seed: int) -> Mapping[str, Any]:
    worst: dict[str, Row] = {}
    for row in report.rows:
        if row.runtime not in worst or row.used > worst[row.runtime].used:
            worst[row.runtime] = row
    return {
        "status": report.status,
        "weights": report.weights,
        "reading": report.reading.to_json(),
        "seed": seed,
        "rows": len(report.rows),
        "failed": sum(row.status == "failed" for row in report.rows),
        "worst": [row.to_json() for row in worst.values()],
        "skipped": report.skipped,
        "quantization_error": report.quantization_error,
        "numbers": report.numbers,
        "left_out": report.left_out,
        "not_visible": report.not_visible,
        "eager": {"torch": torch.__version__, "device": "cpu", "tf32": False},
    }

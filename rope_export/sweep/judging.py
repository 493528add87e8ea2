"""One artifact, exported and verified on its runtimes: the work of one process."""

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import msgspec

from rope_export.engines import build_engine
from rope_export.engines.module import PACKAGES as ENGINES
from rope_export.errors import CheckpointError, InputError, RopeExportError
from rope_export.jobs import code_digest
from rope_export.jobs.store import settled
from rope_export.parity.harness import verify
from rope_export.parity.report.cells import SHARED
from rope_export.parity.report.located import Located
from rope_export.parity.report.result import Report
from rope_export.parity.report.tables import worst_of
from rope_export.parity.report.words import kind_of
from rope_export.parity.rows import Row
from rope_export.reading.verdict import Reading
from rope_export.runtimes import find_runtime
from rope_export.sweep.cell import Export

FAILED = 20
"""Failed rows of a cell that are kept, beside the worst of each output."""

UNREAD = Reading(status="unproven")


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came of one cell.

    status: "refused" if there is no such artifact, "skipped" if the runtime cannot run it. reason:
    of both, or why nothing was compared. lasting: whether another run would come to the same; not
    where something is not on this machine. comparisons: rows of the runtime. rows: the worst of
    each output, the runtime's and eager's, and those that failed. seconds: its share of the time
    that its artifact took. The others are as in a `Report`.
    """

    status: Literal["passed", "failed", "refused", "skipped"]
    reason: str = ""
    lasting: bool = True
    comparisons: int = 0
    seconds: float = 0.0
    rows: tuple[Row, ...] = ()
    weights: Literal["proven", "unproven"] = "unproven"
    reading: Reading = UNREAD
    problems: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    not_visible: tuple[dict[str, str], ...] = ()
    located: tuple[Located, ...] = ()
    overflow: bool = False


def judged(
    export: Mapping[str, Any],
    runtimes: Sequence[str],
    code: str,
    config: str | None = None,
    keep: str | None = None,
) -> dict[str, Result]:
    """The result on each runtime, by the names of the cells.

    export: an `Export` as JSON. code: digest of the code that asks, which must be this. config: the
    text of a config file, where the source is one. keep: the folder that the artifact is written
    to; without, it is thrown away.
    Raises: RopeExportError for a source that is not here, or code that is another.
    """
    if code != code_digest():
        raise RopeExportError(
            "this worker has another version of rope_export or of its packages; install the same "
            "on all machines."
        )
    wanted = msgspec.convert(export, Export)
    started = time.perf_counter()
    absent = {name: find_runtime(name).unavailable() for name in runtimes}
    results = {
        name: Result(status="skipped", reason=reason, lasting=False)
        for name, reason in absent.items()
        if reason is not None
    }
    here = [name for name in runtimes if name not in results]
    if here:
        with tempfile.TemporaryDirectory(prefix="rope_export-") as folder:
            source = _source(wanted, config, Path(folder))
            out = Path(folder) / "artifact" if keep is None else Path(keep)
            results |= _judged(wanted, source, out, here)
    spent = (time.perf_counter() - started) / max(1, len(here))
    return {
        f"{wanted.title} on {name}": settled(
            replace(results[name], seconds=spent if name in here else 0.0), Result
        )
        for name in runtimes
    }


def _source(export: Export, config: str | None, folder: Path) -> str:
    """The source's path, or that of a copy of the config where it does not lie there."""
    path = Path(export.path)
    if config is None or (path.is_file() and path.read_text(encoding="utf-8") == config):
        return export.path
    copy = folder / path.name
    copy.write_text(config, encoding="utf-8")
    return str(copy)


def _judged(export: Export, source: str, out: Path, runtimes: Sequence[str]) -> dict[str, Result]:
    """On runtimes that are here."""
    from rope_export.decoder.pipeline import export_decoder
    from rope_export.exporter.pipeline import export as export_layer

    make: Any = export_decoder if export.decoder else export_layer
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        artifact = make(source, out=out, **export.options())
    except CheckpointError:
        raise  # the plan has opened the source: it is not here, or not what it was
    except InputError as error:
        return dict.fromkeys(runtimes, Result(status="refused", reason=str(error)))
    plain = [name for name in runtimes if name not in ENGINES]
    results = _verified(artifact, plain, export.seed, source) if plain else {}
    for name in runtimes:
        if name in ENGINES:
            engine = out.with_name(f"{out.name}-{name}")
            results |= _engine(artifact, name, engine, export.seed, source)
    return results


def _engine(artifact: Any, runtime: str, out: Path, seed: int, source: str) -> dict[str, Result]:
    """On a runtime of engines: the engine is built where it is to run."""
    try:
        engine = build_engine(artifact, out=out, engine=runtime)
    except InputError as error:
        return {runtime: Result(status="refused", reason=str(error))}
    return _verified(engine, [runtime], seed, source)


def _verified(artifact: Any, runtimes: Sequence[str], seed: int, source: str) -> dict[str, Result]:
    report = verify(artifact, source=source, runtimes=runtimes, seed=seed, threads=1)
    results = {name: result_of(report, name, runtimes) for name in runtimes}
    for skipped in report.skipped:
        name = skipped["runtime"]
        if (
            find_runtime(name).unavailable(artifact) is None
        ):  # it should run here, and did not start
            results[name] = replace(results[name], lasting=False)
    return results


def result_of(report: Report, runtime: str, runtimes: Sequence[str]) -> Result:
    """One runtime's part of a report on several of them."""
    others = set(runtimes) - {runtime}
    part = replace(report, rows=[row for row in report.rows if row.runtime not in others])
    for skipped in report.skipped:
        if skipped["runtime"] == runtime:
            return Result(status="skipped", reason=skipped["reason"])
    status = part.status
    if runtime == "eager" and status == "nothing compared":
        status = "passed"
    if status == "nothing compared":
        why = report.reading.reason or " ".join(report.left_out) or "nothing was compared"
        return Result(status="skipped", reason=why)
    own = [row for row in part.rows if row.runtime not in SHARED or row.runtime == runtime]
    return Result(
        status=status,
        comparisons=len(own),
        rows=kept_rows(part.rows),
        weights=report.weights,
        reading=report.reading,
        problems=tuple(report.problems),
        left_out=tuple(report.left_out),
        not_visible=tuple(report.not_visible),
        located=tuple(x for x in report.located if x.runtime not in others),
        overflow=report.overflow,
    )


def kept_rows(rows: Sequence[Row]) -> tuple[Row, ...]:
    """The worst row of each runtime and kind of output, and further ones that failed."""
    worst = worst_of(rows, lambda row: (row.runtime, kind_of(row.output)))
    kept = [row for row in worst if row.runtime != "file" or row.status == "failed"]
    failed = [row for row in rows if row.status == "failed" and row not in kept]
    failed.sort(key=lambda row: -row.used)
    return (*kept, *failed[:FAILED])

"""A sweep: what is not done yet is run in processes or on a cluster; one report is made of all."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import filelock

from rope_export import paths
from rope_export.errors import InputError
from rope_export.jobs import Answer, Call, Needs, Pool, Store, code_digest, digest, finished, run
from rope_export.parity.report.result import Report
from rope_export.runtimes import find_runtime
from rope_export.sweep.cell import Cell, Export
from rope_export.sweep.judging import Result, judged
from rope_export.sweep.merging import merged
from rope_export.sweep.planning import Plan
from rope_export.sweep.sources import source_digest

RESULTS, LOCK = "results", "sweep.lock"

BASE = 1 << 30
"""Bytes that PyTorch, transformers and a small artifact take."""

COPIES = 5
"""Times that the weights are in memory while an artifact is made and verified: ours, transformers'
in float32 and float64, and a runtime's."""

Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Swept:
    """What a sweep found. report: of all cells. earlier: how many were taken from an earlier
    run."""

    report: Report
    earlier: int


def sweep(
    plan: Plan,
    *,
    out: Path,
    pool: Pool,
    keep: bool = False,
    fresh: bool = False,
    progress: Progress = lambda step: None,
) -> Swept:
    """Runs every cell of a plan that is not done yet, and merges all of them.

    out: the folder of the results, each of which is written as soon as it is there; a later sweep
    goes on from them, also if this one was killed. pool: where cells are run. keep: keep artifacts,
    in `out` too. fresh: repeat what is done. progress: called with the name of each step.
    Raises: InputError if `out` is a file, or another sweep runs in it.
    """
    with _held(out):
        store = Store(out / RESULTS)
        progress("reading the sources")
        keys = cell_keys(plan, store)
        done = {} if fresh else _done(keys, plan, store, out if keep else None)
        calls = list(_calls(plan, keys, done, out if keep else None))
        names = {cell.title: cell for cell in keys}
        found = run(calls, Result, pool=pool, store=store, fresh=True, line=_line)
        results = done | {names[name]: value for name, value in found.results.items()}
        results |= {c: Result(status="refused", reason=x) for c, x in plan.refused.items()}
        errors = {names[name]: error for name, error in found.errors.items()}
        ordered = {cell: results[cell] for cell in (*keys, *plan.refused) if cell in results}
        return Swept(report=merged(ordered, errors), earlier=len(done))


def cell_keys(plan: Plan, store: Store) -> dict[Cell, str]:
    """What the result of each cell is kept under: the code, the versions of what it runs on, the
    contents of the source, the options, and the runtime."""
    sources: dict[str | None, str] = {None: "", "none": ""}
    keys = {}
    for cell in plan.cells:
        export = cell.export
        for path in (export.path, export.adapter):
            if path is not None and path not in sources:
                sources[path] = source_digest(path, store)
        options = sorted((k, v) for k, v in export.options().items() if k != "adapter")
        contents = sources[export.path], sources[export.adapter]
        keys[cell] = digest(code_digest(), contents, export.decoder, options, cell.runtime)
    return keys


def _done(
    keys: Mapping[Cell, str], plan: Plan, store: Store, kept: Path | None
) -> dict[Cell, Result]:
    """Cells with a result that another run would have too. kept: where artifacts are to lie."""
    results = finished(keys, Result, store)
    return {
        cell: result
        for cell, result in results.items()
        if result.lasting
        and (kept is None or result.status == "refused" or cell.export.folder(kept).is_dir())
    }


def _calls(
    plan: Plan, keys: Mapping[Cell, str], done: Mapping[Cell, Result], kept: Path | None
) -> Iterator[Call]:
    """One for each artifact that has cells to be run, and one more for those that need a GPU; whole
    decoders first, which take longest."""
    exports = sorted(plan.exports.items(), key=lambda item: not item[0].decoder)
    for export, runtimes in exports:
        remaining = [x for x in runtimes if Cell(export=export, runtime=x) not in done]
        for gpu in (False, True):
            own = [name for name in remaining if find_runtime(name).on_gpu is gpu]
            if own:
                yield _call(export, own, keys, kept, gpu)


def _call(
    export: Export, runtimes: list[str], keys: Mapping[Cell, str], kept: Path | None, gpu: bool
) -> Call:
    cells = [Cell(export=export, runtime=name) for name in runtimes]
    path, config = Path(export.path), None
    if path.is_file() and path.suffix == ".json":
        config = path.read_text(encoding="utf-8")
    return Call(
        name=f"{export.title} on {', '.join(runtimes)}",
        function=judged,
        options={
            "export": replace(export, path=_whole(export.path)).to_json(),
            "runtimes": runtimes,
            "code": code_digest(),
            "config": config,
            "keep": None if kept is None else str(export.folder(kept.resolve())),
        },
        keys={cell.title: keys[cell] for cell in cells},
        needs=Needs(gpus=1.0 if gpu else 0.0, memory=_memory(export)),
    )


def _whole(path: str) -> str:
    """A path as it can be opened by a process that began elsewhere; a hub id is none."""
    return str(Path(path).absolute()) if Path(path).exists() else path


def _memory(export: Export) -> int:
    """Bytes that an artifact may take; of a source that is no file or folder, the least."""
    path = Path(export.path)
    files = [path] if path.is_file() else path.glob("*.safetensors")
    size = sum(file.stat().st_size for file in files if file.suffix != ".json")
    return BASE + (COPIES * size if export.decoder else 0)


def _line(answer: Answer) -> str:
    """An artifact in a line of the progress."""
    words = []
    for name, result in answer.values.items():
        words.append(f"{name.rpartition(' on ')[2]} {result.status}")
    seconds = sum(result.seconds for result in answer.values.values())
    return f"{answer.name.rpartition(' on ')[0]}: {', '.join(words)} ({seconds:.1f} s)"


@contextmanager
def _held(out: Path) -> Iterator[None]:
    """The folder, made if it is not there, and held against other sweeps."""
    with paths.named(out), suppress(FileExistsError):
        out.mkdir(parents=True, exist_ok=True)
    if not out.is_dir():
        raise InputError(f"{paths.shown(out)}: is a file; `out` is a folder. Give another path.")
    lock = filelock.FileLock(out / LOCK)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise InputError(
            f"{paths.shown(out)}: another sweep writes there; wait for it, or give another `out`."
        ) from error
    try:
        yield
    finally:
        lock.release()

"""The lowering that is fastest here, chosen by measuring every one that can express the layer."""

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rope_export.artifacts.artifact import Artifact
from rope_export.artifacts.saving import check_target
from rope_export.bench import Bench, Choice, Plan, Progress, Shape, benchmark
from rope_export.errors import InputError, RopeExportError
from rope_export.exporter.pipeline import export
from rope_export.lowerings import lowerings

SHAPES = tuple(
    Shape(batch=batch, sequence=sequence, past=past)
    for batch, sequence, past in ((1, 1, 128), (1, 1, 1024), (4, 1, 1024), (1, 256, 0))
)
"""Mostly decoding, which is what a cache is for; one prompt."""

WITHOUT_CACHE = tuple(Shape(batch=b, sequence=s, past=0) for b, s in ((1, 1), (1, 64), (2, 256)))

ONLY = Plan(rounds=5)


def tuned(
    source: str | Path,
    *,
    out: str | Path,
    shapes: Sequence[Shape] | None = None,
    plan: Plan = ONLY,
    threads: int | None = None,
    progress: Progress = lambda step, done: None,
    **options: Any,
) -> Artifact:
    """Export in the lowering that is fastest here; its evidence records what was measured.

    Every lowering that can express the layer is exported, verified and timed, and the one with the
    smallest geometric mean of its medians over all shapes is written to `out`.
    source, out, options: as for `export`, whose `lowering` is what is looked for. shapes: of the
    calls; mostly decoding unless given. plan, threads: as for `bench`.
    Raises: InputError as `export` does, or if no lowering could be measured; RopeExportError if one
        of them computes something wrong. Nothing is written then.
    """
    check_target(Path(out), Artifact)
    cache = options.get("cache", "growing")
    chosen = tuple(shapes or (WITHOUT_CACHE if cache == "none" else SHAPES))
    with tempfile.TemporaryDirectory() as name:
        candidates = _candidates(source, Path(name), options, progress)
        bench = benchmark(
            list(candidates.values()),
            shapes=chosen,
            choice=Choice(only=tuple(candidates)),
            plan=plan,
            threads=threads,
            progress=progress,
        )
    wrong = [row for row in bench.rows if row.status == "wrong"]
    if wrong:
        raise RopeExportError(
            f"lowering {wrong[0].contender!r} computes something wrong ({wrong[0].reason}); report "
            f"this, and export with another `lowering`."
        )
    means = {x: mean for x in candidates if (mean := _mean(bench, x)) is not None}
    if not means:
        raise InputError(
            "no lowering of this layer could be measured here; name one by `lowering`."
        )
    fastest = min(means, key=lambda x: means[x])
    progress(f"exporting in lowering {fastest}", None)
    artifact = export(source, out=out, lowering=fastest, **options)
    artifact.record(tuning=_evidence(bench, fastest, means))
    return artifact


def _candidates(
    source: str | Path, folder: Path, options: dict[str, Any], progress: Progress
) -> dict[str, Path]:
    """An artifact of every lowering for runtimes that can express the layer, by its name."""
    candidates: dict[str, Path] = {}
    refusals = []
    for name in (x.name for x in lowerings().values() if not x.engine):
        progress(f"exporting in lowering {name}", None)
        try:
            export(source, out=folder / name, lowering=name, **options)
        except InputError as error:
            refusals.append(str(error))
            continue
        candidates[name] = folder / name
    if not candidates:
        raise InputError(refusals[0])
    return candidates


def _mean(bench: Bench, name: str) -> float | None:
    """Geometric mean of a contender's medians, or nothing if it lacks a shape."""
    rows = [row for row in bench.rows if row.contender == name]
    medians = [row.timing.median for row in rows if row.timing is not None]
    if not medians or len(medians) < len(rows):
        return None
    return math.exp(sum(map(math.log, medians)) / len(medians))


def _evidence(bench: Bench, fastest: str, means: dict[str, float]) -> dict[str, Any]:
    facts = bench.to_json()
    names = ("shape", "contender", "median_ms", "interval_ms")
    rows = [{"shape": row.shape.name, **row.to_json()} for row in bench.rows]
    return {
        "chosen": fastest,
        "mean_ms": {name: 1e3 * mean for name, mean in means.items()},
        "rows": [{name: row[name] for name in names} for row in rows],
        **{name: facts[name] for name in ("date", "machine", "versions", "notes")},
    }

"""What onnxruntime's session options are worth: `python -m scripts.benchmarks.sessions [--write]`.

Each option is changed alone, and the sessions are timed in alternating blocks; --write writes
docs/benchmarks/sessions.md.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import onnxruntime

from rope_export import export
from rope_export.artifacts.artifact import Artifact
from rope_export.artifacts.manifest import Manifest
from rope_export.bench.contenders import steps
from rope_export.bench.markdown import table_lines
from rope_export.bench.shapes import Shape, drawn
from rope_export.bench.timing import Call, Plan, Timing, measure
from rope_export.environment import cores, cpu_name
from rope_export.runtimes.onnxruntime import RUNTIMES, OnnxRuntimeRunner
from rope_export.sessions import Session
from rope_export.spec import AttentionSpec

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "benchmarks" / "sessions.md"
SOURCES = (ROOT / "checkpoints" / "smollm2-135m", ROOT / "models" / "llama-3.2-1b.json")
SHAPES = (
    Shape(batch=1, sequence=1, past=512),
    Shape(batch=4, sequence=1, past=512),
    Shape(batch=1, sequence=256, past=0),
)
Options = Any
DEFAULT = "as rope_export opens it"


def _entry(name: str, value: str) -> Callable[[Options], None]:
    return lambda options: options.add_session_config_entry(name, value)


def _attribute(name: str, value: object) -> Callable[[Options], None]:
    return lambda options: setattr(options, name, value)


CHANGES: dict[str, Callable[[Options], None]] = {
    DEFAULT: lambda options: None,
    "threads sleep between calls": _entry("session.intra_op.allow_spinning", "0"),
    "one thread": _attribute("intra_op_num_threads", 1),
    "no arena": _attribute("enable_cpu_mem_arena", False),
    "no memory pattern": _attribute("enable_mem_pattern", False),
    "weights not packed": _entry("session.disable_prepacking", "1"),
    "finer blocks of work": _entry("session.dynamic_block_base", "4"),
}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Timings of every change at one shape of one source."""

    source: str
    shape: Shape
    timings: dict[str, Timing]


def _session(artifact: Artifact, change: Callable[[Options], None]) -> Session:
    options = RUNTIMES[0].options()
    change(options)
    inner = RUNTIMES[0].load(artifact, options)
    runner = OnnxRuntimeRunner(artifact.manifest.interface, inner, RUNTIMES[0])
    return Session(artifact.manifest, runner)


def _call(session: Session, shape: Shape) -> Call:
    assert isinstance(session.manifest, Manifest)
    spec = AttentionSpec.from_json(session.manifest.spec)
    stream = session.start(batch=shape.batch, capacity=shape.total)
    return steps(stream, shape, drawn(spec, shape, 0))


def compare(source: Path, plan: Plan) -> Iterator[Comparison]:
    """Every change at every shape, on the layer that "auto" makes of `source`."""
    with tempfile.TemporaryDirectory() as folder:
        artifact = export(source, out=Path(folder) / "artifact", cache="fixed")
        sessions = {name: _session(artifact, change) for name, change in CHANGES.items()}
        for shape in SHAPES:
            calls = {name: _call(session, shape) for name, session in sessions.items()}
            timings = measure(calls, plan)
            yield Comparison(source=source.stem, shape=shape, timings=timings)


def page(comparisons: list[Comparison]) -> Iterator[str]:
    yield "# What session options are worth"
    yield ""
    yield (
        f"Reprinted by `python -m scripts.benchmarks.sessions --write`. {date.today()}, "
        f"{cpu_name()}, {cores()} cores, onnxruntime {onnxruntime.__version__}. Fixed cache, "
        f"float32; one option changed at a time. Times are medians; others are relative to the "
        f"first column, more than 1 being slower, with the 95 % interval of the median in brackets."
    )
    yield ""
    others = [name for name in CHANGES if name != DEFAULT]
    rows = []
    for comparison in comparisons:
        first = comparison.timings[DEFAULT].median
        cells = [comparison.source, comparison.shape.name, f"{1e3 * first:.3f} ms"]
        for timing in (comparison.timings[name] for name in others):
            low, high = (bound / first for bound in timing.interval)
            cells.append(f"{timing.median / first:.2f} ({low:.2f} - {high:.2f})")
        rows.append(cells)
    yield from table_lines(("layer", "call", DEFAULT, *others), rows)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.benchmarks.sessions", description=__doc__
    )
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(ROOT)}")
    options = parser.parse_args()
    comparisons = [comparison for source in SOURCES for comparison in compare(source, Plan())]
    lines = "\n".join(page(comparisons)) + "\n"
    print(lines, end="")
    if options.write:
        PAGE.write_text(lines, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

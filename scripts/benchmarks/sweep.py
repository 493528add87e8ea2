"""A sweep of a thousand cells, and what they take: `python -m scripts.benchmarks.sweep`.

Every configuration of models/, at reduced width, by its kinds of layers; some as whole decoders of
few layers. Results are kept under build/sweep, so that a run that was killed goes on; --fresh
repeats everything, and --write, which needs it, writes docs/benchmarks/sweep.md.
"""

import argparse
import dataclasses
import json
import os
import statistics
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import psutil

from rope_export.bench.markdown import table_lines
from rope_export.environment import cpu_name, versions
from rope_export.errors import SpecError
from rope_export.jobs.local import Processes
from rope_export.parity.report.cells import COMPARED, Cells, JudgedCell
from rope_export.sweep import planned, read_matrix, sweep
from rope_export.sweep.planning import Plan
from tests.conformance.models import MODELS, reduced

ROOT = Path(__file__).parents[2]
OUT = ROOT / "build" / "sweep"
PAGE = ROOT / "docs" / "benchmarks" / "sweep.md"

DECODERS = (
    "llama-3.2-1b",
    "mistral-7b-v0.1",
    "phi-3-mini-4k",
    "qwen3-8b",
    "tinyllama-1.1b-chat-v1.0",
)
"""Configurations that are exported as whole decoders too."""

FEW = {"num_hidden_layers": 2, "vocab_size": 512, "intermediate_size": 256, "pad_token_id": None}
"""What is smaller in these."""

MATRIX = """\
# Written by scripts/benchmarks/sweep.py: every configuration of models/, at reduced width.
sources = ["models/*.json", {path = "decoders/*.json", layers = [], decoder = true}]
layers = "kinds"
lowerings = ["portable", "standard", "ort"]
caches = ["none", "growing", "fixed"]
dtypes = ["float32", "float16"]
runtimes = [RUNTIMES]

[[exclude]]
dtype = "float16"
lowering = ["portable", "ort"]

[[exclude]]
dtype = "float16"
cache = ["none", "fixed"]

[[exclude]]          # a decoder has a cache
decoder = true
cache = "none"
"""

RUNTIMES = ("onnxruntime", "openvino", "reference")


@dataclass(frozen=True, kw_only=True)
class Load:
    """wall: seconds of the sweep. cores: that others took meanwhile, on average."""

    wall: float
    cores: float


def write_matrix(runtimes: Iterable[str]) -> Path:
    """The configurations, and the matrix beside them."""
    for folder in ("models", "decoders"):
        (OUT / folder).mkdir(parents=True, exist_ok=True)
    for path in sorted(MODELS.glob("*.json")):
        try:
            config = reduced(json.loads(path.read_text(encoding="utf-8")))
        except SpecError:
            config = json.loads(path.read_text(encoding="utf-8"))  # refused, and listed so
        _write(OUT / "models" / path.name, config)
        if path.stem in DECODERS:
            _write(OUT / "decoders" / path.name, {**config, **FEW})
    matrix = OUT / "matrix.toml"
    matrix.write_text(MATRIX.replace("RUNTIMES", ", ".join(f'"{x}"' for x in runtimes)))
    return matrix


def _write(path: Path, config: dict[str, Any]) -> None:
    text = json.dumps(config, indent=1)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def run(plan: Plan, jobs: int, fresh: bool) -> tuple[Cells, Load, int]:
    """The cells, what else the machine did, and how many cells an earlier run had done."""
    busy, started = _busy(), time.perf_counter()
    swept = sweep(plan, out=OUT, pool=Processes(jobs), fresh=fresh)
    wall = time.perf_counter() - started
    own = psutil.Process()
    ours = sum(own.cpu_times()[:4])  # its own, and those of processes that have ended
    ours += sum(sum(x.cpu_times()[:2]) for x in own.children(recursive=True))
    cells = swept.report.cells
    assert cells is not None
    return cells, Load(wall=wall, cores=max(0.0, _busy() - busy - ours) / wall), swept.earlier


def _busy() -> float:
    """Seconds of all processors that were spent on anything."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - times.iowait - times.guest - times.guest_nice)


def page(cells: Cells, load: Load, command: str) -> Iterator[str]:
    compared = cells.of(*COMPARED)
    artifacts = {cell.artifact for cell in compared}
    packages = versions(("torch", "transformers", "onnxruntime", "openvino", "onnx"))
    yield "# A sweep of a thousand cells"
    yield ""
    yield (
        f"Reprinted by `{command}`. {date.today().isoformat()}, {cpu_name()}, {os.cpu_count()} "
        f"cores, {', '.join(f'{name} {x}' for name, x in packages.items())}. Every configuration "
        f"of `models/` at reduced width, the kinds of its layers, and five as whole decoders of "
        f"two layers, in every lowering and cache ([sweeps](../sweep.md))."
    )
    yield ""
    yield (
        f"**{len(compared)} cells of {len(artifacts)} artifacts in {load.wall / 60:.1f} minutes**, "
        f"{load.wall / len(compared):.2f} s a cell, {sum(x.comparisons for x in compared)} "
        f"comparisons; {len(cells.of('failed', 'crashed'))} failed, "
        f"{len(cells.of('skipped'))} skipped and {len(cells.of('refused'))} refused, which do not "
        f"count. Other processes took {load.cores:.2f} cores meanwhile."
    )
    yield ""
    yield (
        "Seconds of a process: an artifact's export and its verification on all of its runtimes, "
        "shared by its cells."
    )
    yield ""
    heads = (
        "lowering",
        "cache",
        "what",
        "cells",
        "artifacts",
        "median s a cell",
        "slowest",
        "sum s",
    )
    yield from table_lines(heads, _rows(compared))
    yield ""
    wrong = [line for line in cells.lines() if line.startswith(("failed", "crashed"))]
    yield from (f"- {line}" for line in wrong)
    yield from [""] if wrong else []
    reasons = cells.reasons("skipped", "refused")
    yield from table_lines(
        ("not counted", "cells", "reason"),
        ((status, len(own), reason) for (status, reason), own in reasons.items()),
    )


def _rows(cells: Iterable[JudgedCell]) -> Iterator[tuple[object, ...]]:
    groups: dict[tuple[str, str, str], list[JudgedCell]] = {}
    for cell in cells:
        source, lowering, cache, _ = cell.artifact.split(", ")
        what = "decoder" if source.endswith("decoder") else "layer"
        groups.setdefault((lowering, cache, what), []).append(cell)
    for key, own in groups.items():
        seconds = [cell.seconds for cell in own]
        figures = (statistics.median(seconds), max(seconds), sum(seconds))
        count = len({cell.artifact for cell in own})
        yield (*key, len(own), count, *(f"{x:.1f}" for x in figures))


def main() -> int:
    """Exit status 0 if no cell failed, 1 otherwise."""
    parser = argparse.ArgumentParser(prog="python -m scripts.benchmarks.sweep", description=__doc__)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--runtimes", nargs="+", default=list(RUNTIMES), help="of the cells")
    parser.add_argument("--fresh", action="store_true", help="repeat what build/sweep has")
    parser.add_argument("--dry-run", action="store_true", help="count the cells, and stop")
    parser.add_argument("--limit", type=int, help="the first artifacts alone")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(ROOT)}")
    options = parser.parse_args()
    plan = planned(read_matrix(write_matrix(options.runtimes)))
    if options.limit is not None:
        step = max(1, len(plan.exports) // options.limit)
        few = dict(list(plan.exports.items())[::step])
        plan = dataclasses.replace(plan, exports=few)
    print(f"{len(list(plan.cells))} cells of {len(plan.exports)} artifacts", file=sys.stderr)
    if options.dry_run:
        return 0
    cells, load, earlier = run(plan, options.jobs, options.fresh)
    print(f"{cells.counts()} in {load.wall:.0f} s; {load.cores:.2f} cores were taken by others")
    for line in cells.lines():
        print(line)
    if options.write and not earlier:
        command = "python -m scripts.benchmarks.sweep --fresh --write"
        PAGE.write_text("\n".join(page(cells, load, command)) + "\n", encoding="utf-8")
    return 1 if cells.failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""The results of a comparison of exporters, as Markdown and as JSON."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rope_export.bench.markdown import table_lines
from scripts.benchmarks.peers.measure import BATCH, CASES, SHAPES, Latency

ROUNDING = 1e-3
"""A relative error of float32 arithmetic is far below; what lies above is another computation."""


def _chunks(case: str) -> str:
    return " + ".join(map(str, CASES[case].chunks))


EXPORT = (
    "One call each: wall time of the process, its imports included (read from the disk before), "
    "and its largest resident memory. Nodes of the layer without constants."
)
ERROR = (
    f"Largest error relative to the largest output, against the mathematics in float64, batch "
    f"{BATCH}. Decode: {_chunks('decode')} tokens, the later calls judged. Left padding: "
    f"{CASES['left padding'].padded} slots in the second row, positions counted from the first "
    f"real token, {_chunks('left padding')} tokens, real ones judged. Batched chunk: "
    f"{_chunks('batched chunk')} tokens, the second call judged. **wrong**: above {ROUNDING:g}. "
    f"Layers that take no position_ids, those of genai and of mobius --ep cpu, count positions "
    f"themselves."
)
LATENCY = (
    "Median over {rounds} rounds of the median of a block of calls, and the smallest and the "
    "largest of these medians. Blocks of the contenders alternate, in an order drawn anew for each "
    "round; the first calls of a block are discarded. Growing caches are allocated in each call, "
    "shared buffers and fixed caches have {capacity:,} slots and are written in place. Ours run by "
    "`session.run` and `stream.step`, the others by a binding that is made for each call."
)


@dataclass(frozen=True, kw_only=True)
class Export:
    """What an exporter's call took and gave. problem: why it gave nothing; then the rest is 0."""

    name: str
    problem: str | None = None
    seconds: float = 0.0
    peak: int = 0
    whole_bytes: int = 0
    layer_bytes: int = 0
    nodes: int = 0


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one form of running an exported layer gave, by case and by call."""

    name: str
    errors: dict[str, float | str]
    latencies: dict[str, Latency | str]


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The machine, settings and versions of a comparison."""

    date: str
    cpu: str
    load: float
    threads: int
    rounds: int
    capacity: int
    layer: str
    versions: dict[str, dict[str, str]]
    command: str


@dataclass(frozen=True, kw_only=True)
class Results:
    """The results of one run."""

    facts: Facts
    exports: tuple[Export, ...]
    rows: tuple[Row, ...]

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def page_lines(results: Results) -> Iterator[str]:
    """The whole page, line by line."""
    facts = results.facts
    yield "# Exporters side by side"
    yield ""
    yield (
        f"Measured on {facts.date} by `{facts.command}` on {facts.cpu}, {facts.threads} threads, "
        f"load average {facts.load:.1f} before. The layer: {facts.layer}. Every exporter is given "
        f"the same checkpoint of a one-layer Llama in float32 with drawn weights, in a process and "
        f"an environment of its own; of a whole model the attention layer is cut out, from the "
        f"input of q_proj to the output of o_proj, with all that its mask, cos and sin are made "
        f"of. All layers run in the onnxruntime of `rope_export`'s environment."
    )
    yield ""
    yield from table_lines(("environment", "versions"), _versions(facts))
    heads: tuple[str, ...]
    heads = ("exporter", "seconds", "peak MB", "files MB", "layer MB", "nodes of the layer")
    yield from _section("Export", EXPORT, heads, [_export(export) for export in results.exports])
    heads = ("layer", *CASES)
    yield from _section("Error", ERROR, heads, [_errors(row) for row in results.rows])
    heads = ("layer", *map(str, SHAPES))
    legend = LATENCY.format(rounds=facts.rounds, capacity=facts.capacity)
    yield from _section("Latency, ms", legend, heads, [_latencies(row) for row in results.rows])


def _section(
    title: str, legend: str, heads: Sequence[str], rows: Sequence[Sequence[str]]
) -> Iterator[str]:
    yield from ("", f"## {title}", "", legend, "")
    yield from table_lines(heads, rows)


def _versions(facts: Facts) -> list[tuple[str, str]]:
    return [
        (name, ", ".join(f"{package} {version}" for package, version in versions.items()))
        for name, versions in facts.versions.items()
    ]


def _export(export: Export) -> tuple[str, ...]:
    if export.problem:
        return (export.name, export.problem, "", "", "", "")
    sizes = (export.peak, export.whole_bytes, export.layer_bytes)
    peak, whole, layer = (f"{size / 1e6:,.1f}" for size in sizes)
    return (export.name, f"{export.seconds:.1f}", peak, whole, layer, str(export.nodes))


def _errors(row: Row) -> tuple[str, ...]:
    return (row.name, *(error_cell(row.errors[case]) for case in CASES))


def error_cell(error: float | str) -> str:
    """The error, and whether it is more than rounding."""
    if isinstance(error, str):
        return error
    right = math.isfinite(error) and error <= ROUNDING
    return f"{error:.0e}" if right else f"**wrong** {error:.1g}"


def _latencies(row: Row) -> tuple[str, ...]:
    return (row.name, *(latency_cell(row.latencies[str(shape)]) for shape in SHAPES))


def latency_cell(latency: Latency | str) -> str:
    """Median, smallest and largest."""
    if isinstance(latency, str):
        return latency
    return f"{latency.median:.2f} ({latency.least:.2f}–{latency.most:.2f})"  # noqa: RUF001

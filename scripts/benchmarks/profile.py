"""Where a decode step's time goes: `python -m scripts.benchmarks.profile [SOURCE] [--write]`.

Runs the lowering that "auto" takes for a fixed cache with onnxruntime's own profiler, and sets each
operator's time beside the bytes that it has to read. --write writes docs/benchmarks/profile.md.
"""

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import median

import onnxruntime
import torch

from rope_export import export
from rope_export.artifacts.artifact import Artifact
from rope_export.bench.contenders import steps
from rope_export.bench.markdown import table_lines
from rope_export.bench.roofline import Limits, measured_limits, weight_bytes, work
from rope_export.bench.shapes import Shape, drawn
from rope_export.environment import cores, cpu_name
from rope_export.runtimes.onnxruntime import RUNTIMES, OnnxRuntimeRunner
from rope_export.sessions import Session
from rope_export.spec import AttentionSpec

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "benchmarks" / "profile.md"
DEFAULT = ROOT / "models" / "llama-3.2-1b.json"
SHAPES = (Shape(batch=1, sequence=1, past=2048), Shape(batch=4, sequence=1, past=1024))
STEPS, WARM = 300, 50


@dataclass(frozen=True, kw_only=True)
class Share:
    """One kind of node in one step. seconds: of all of them together. read: bytes of weights or
    cache that they must read, 0 where neither is read."""

    what: str
    nodes: int
    seconds: float
    read: int


def profiled(artifact: Artifact, shape: Shape, folder: Path, threads: int) -> list[Share]:
    """Medians over steps of one shape, the longest first, with what lies between nodes at last."""
    options = RUNTIMES[0].options()
    options.intra_op_num_threads = threads
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    inner = RUNTIMES[0].load(artifact, options)
    runner = OnnxRuntimeRunner(artifact.manifest.interface, inner, RUNTIMES[0])
    session = Session(artifact.manifest, runner)
    spec = AttentionSpec.from_json(artifact.facts.spec)
    stream = session.start(batch=shape.batch, capacity=shape.total)
    step = steps(stream, shape, drawn(spec, shape, 0))
    for _ in range(WARM + STEPS):
        step()
    events = json.loads(Path(inner.end_profiling()).read_text(encoding="utf-8"))
    return list(_shares(events, spec, shape))


def _shares(events: list[dict[str, object]], spec: AttentionSpec, shape: Shape) -> Iterator[Share]:
    steps: list[dict[str, float]] = []
    kinds: dict[str, str] = {}
    current: dict[str, float] = {}
    for event in events:
        name = str(event["name"])
        if name.endswith("_kernel_time"):
            node = name.removesuffix("_kernel_time")
            kinds[node] = str(event["args"]["op_name"])  # type: ignore[index]
            current[node] = float(str(event["dur"])) / 1e6
        elif name == "model_run":
            steps.append(current | {"": float(str(event["dur"])) / 1e6})
            current = {}
    steps = steps[-STEPS:]
    groups: dict[str, list[str]] = defaultdict(list)
    for node, kind in kinds.items():
        groups[_group(kind)].append(node)
    read = {
        "MatMul": weight_bytes(spec),
        "GroupQueryAttention": work(spec, shape, 0).bytes,
    }
    shares = [
        Share(
            what=kind,
            nodes=len(nodes),
            seconds=median(sum(step.get(node, 0.0) for node in nodes) for step in steps),
            read=read.get(kind, 0),
        )
        for kind, nodes in groups.items()
    ]
    yield from sorted(shares, key=lambda share: -share.seconds)
    whole = median(step[""] for step in steps)
    rest = whole - sum(share.seconds for share in shares)
    yield Share(what="between nodes, and the profiler", nodes=0, seconds=rest, read=0)


def _group(kind: str) -> str:
    return kind if kind in ("MatMul", "GroupQueryAttention") else "everything else"


def page(profiles: dict[Shape, list[Share]], limits: Limits) -> Iterator[str]:
    yield "# Where a decode step's time goes"
    yield ""
    yield (
        f"Reprinted by `python -m scripts.benchmarks.profile --write`. {date.today()}, "
        f"{cpu_name()}, {limits.threads} threads, reads {limits.bandwidth / 1e9:.1f} GB/s, "
        f"onnxruntime {onnxruntime.__version__}. Layer 0 of `models/{DEFAULT.name}` in float32, "
        f"lowering `ort`, fixed cache; medians of {STEPS} steps by "
        f"onnxruntime's profiler, which itself takes time."
    )
    for shape, shares in profiles.items():
        whole = sum(share.seconds for share in shares)
        yield ""
        yield f"## {shape.name}: {1e3 * whole:.2f} ms"
        yield ""
        yield from table_lines(HEADS, (_cells(share, whole, limits) for share in shares))


HEADS = ("operator", "nodes", "ms", "share", "reads MB", "GB/s", "of the bandwidth")


def _cells(share: Share, whole: float, limits: Limits) -> list[str]:
    cells = [share.what, str(share.nodes or ""), f"{1e3 * share.seconds:.3f}"]
    cells.append(f"{100 * share.seconds / whole:.0f} %")
    if not share.read:
        return [*cells, "", "", ""]
    rate = share.read / share.seconds
    of_bandwidth = f"{100 * rate / limits.bandwidth:.0f} %"
    return [*cells, f"{share.read / 1e6:.1f}", f"{rate / 1e9:.1f}", of_bandwidth]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.benchmarks.profile", description=__doc__
    )
    parser.add_argument("source", nargs="?", type=Path, default=DEFAULT)
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(ROOT)}")
    options = parser.parse_args()
    torch.set_num_threads(cores())
    limits = measured_limits(cores())
    with tempfile.TemporaryDirectory() as name:
        artifact = export(options.source, out=Path(name) / "artifact", cache="fixed")
        profiles = {shape: profiled(artifact, shape, Path(name), cores()) for shape in SHAPES}
    lines = "\n".join(page(profiles, limits)) + "\n"
    print(lines, end="")
    if options.write:
        PAGE.write_text(lines, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

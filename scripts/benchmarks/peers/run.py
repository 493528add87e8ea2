"""From a checkpoint to results: every exporter exports, is cut, judged and timed."""

import os
import platform
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np

from scripts.benchmarks.peers import checkpoint as checkpoints
from scripts.benchmarks.peers.checkpoint import Sizes
from scripts.benchmarks.peers.contenders import Contender, Growing, InPlace, OursGrowing, OursStream
from scripts.benchmarks.peers.environments import ENVIRONMENTS, NotInstalledError
from scripts.benchmarks.peers.exports import (
    CAPACITY,
    OURS,
    PEERS,
    Exporter,
    ExportError,
    export,
    own,
    warm,
)
from scripts.benchmarks.peers.layer import LayerError, cut, nodes, read, size
from scripts.benchmarks.peers.measure import CASES, SHAPES, Latency, Reference, latencies, refusal
from scripts.benchmarks.peers.page import Export, Facts, Results, Row

OWN_PACKAGES = ("rope_export", "torch", "transformers", "onnxscript", "onnxruntime")
Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to measure. peers: groups of exporters; ours are always measured."""

    sizes: Sizes
    peers: tuple[str, ...]
    threads: int
    rounds: int
    command: str


def measure(settings: Settings, folder: Path, progress: Progress) -> Results:
    """Everything that `settings` ask for; what is exported is written below `folder`."""
    load = os.getloadavg()[0]
    checkpoint = folder / "checkpoint"
    weights = checkpoints.attention(checkpoints.write(checkpoint, settings.sizes))
    reference = Reference(checkpoint)
    exporters = [peer for peer in PEERS if peer.group in settings.peers]
    exporters += own(reference.spec)
    progress("reading packages from the disk")
    warm({exporter.environment for exporter in exporters})
    exports, ways = [], {}
    for at, exporter in enumerate(exporters):
        progress(f"exporting with {exporter.name}")
        out = folder / str(at) / "exported"
        out.parent.mkdir()
        try:
            exported, more = _exported(exporter, checkpoint, out, weights, settings)
            ways.update(more)
        except NotInstalledError as error:
            exported = Export(name=exporter.name, problem=f"not installed: {error}")
        except (ExportError, LayerError) as error:
            exported = Export(name=exporter.name, problem=refusal(error))
        if exported.problem:
            progress(f"{exporter.name}: {exported.problem}")
        exports.append(exported)
    rows = tuple(_rows(ways, reference, settings, progress))
    return Results(facts=_facts(settings, load), exports=tuple(exports), rows=rows)


Way = Callable[[], Contender]
"""A function that opens one form of running an exported layer."""


def _exported(
    exporter: Exporter,
    checkpoint: Path,
    out: Path,
    weights: Mapping[str, np.ndarray],
    settings: Settings,
) -> tuple[Export, dict[str, Way]]:
    """Export the checkpoint and find the layer in what came out.

    Raises: NotInstalledError, ExportError, LayerError.
    """
    cost = export(exporter, checkpoint, out)
    sizes, threads = settings.sizes, settings.threads
    model, held = out / "model.onnx", size(out)
    ways: dict[str, Way] = {}
    if exporter.group == OURS:
        if "stream" in exporter.forms:
            ways[exporter.name] = lambda: OursStream(out, sizes, threads, CAPACITY)
        else:
            ways[exporter.name] = lambda: OursGrowing(out, sizes, threads)
    else:
        layer = cut(model, out.with_name("layer"), weights) if exporter.whole else read(model)
        model = layer.path
        for form in exporter.forms:
            name = exporter.name if form == exporter.forms[0] else f"{exporter.name}, {form}"
            if form == "growing":
                ways[name] = lambda: Growing(layer, sizes, threads)
            else:
                ways[name] = lambda: InPlace(layer, sizes, threads, CAPACITY)
    exported = Export(
        name=exporter.name,
        seconds=cost.seconds,
        peak=cost.peak,
        whole_bytes=held,
        layer_bytes=size(model.parent),
        nodes=nodes(model),
    )
    return exported, ways


def _rows(
    ways: Mapping[str, Way], reference: Reference, settings: Settings, progress: Progress
) -> Iterator[Row]:
    """Every way opened, judged and timed beside the others."""
    contenders: dict[str, Contender] = {}
    refused: dict[str, str] = {}
    with ExitStack() as stack:
        for name, way in ways.items():
            try:
                contenders[name] = way()
            except Exception as error:  # onnxruntime's own kinds derive from Exception alone
                refused[name] = refusal(error)
            else:
                stack.callback(contenders[name].close)
        errors = {}
        for name, contender in contenders.items():
            progress(f"comparing {name} with the reference")
            errors[name] = reference.errors(contender)
        times = latencies(contenders, settings.sizes.hidden, settings.rounds, progress)
    for name in ways:
        reason = refused.get(name, "")
        none: dict[str, Latency | str] = {str(shape): reason for shape in SHAPES}
        yield Row(
            name=name,
            errors=errors.get(name) or dict.fromkeys(CASES, reason),
            latencies=times.get(name) or none,
        )


def _facts(settings: Settings, load: float) -> Facts:
    sizes = settings.sizes
    return Facts(
        date=date.today().isoformat(),
        cpu=_cpu(),
        load=load,
        threads=settings.threads,
        rounds=settings.rounds,
        capacity=CAPACITY,
        layer=f"hidden {sizes.hidden}, {sizes.heads} heads and {sizes.kv_heads} key/value heads of "
        f"{sizes.head_dim}",
        versions=_versions(settings.peers),
        command=settings.command,
    )


def _versions(peers: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """Versions of what is installed, by environment."""
    versions = {"rope_export": {package: version(package) for package in OWN_PACKAGES}}
    environments = {peer.environment for peer in PEERS if peer.group in peers}
    for name, environment in ENVIRONMENTS.items():
        if name in environments and environment.is_ready:
            versions[name] = environment.versions()
    return versions


def _cpu() -> str:
    """The processor's name and how many of its cores are here."""
    name = platform.processor() or platform.machine()
    if sys.platform == "linux":
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
        name = match[1] if match else name
    return f"{name}, {os.cpu_count()} cores"

"""The exporters: how each is called, by its documentation, and what a call of it costs."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rope_export.lowerings import lowerings, refusal
from rope_export.spec import AttentionSpec
from scripts.benchmarks.peers.environments import ENVIRONMENTS, ROOT, Environment

POLL_SECONDS = 0.02
LIMIT_SECONDS = 900
CAPACITY = 2176
"""Slots of every cache of fixed size: room for 128 tokens after the longest past measured."""
OURS = "ours"


class ExportError(Exception):
    """An exporter gave nothing; the message says why, in one line."""


@dataclass(frozen=True, kw_only=True)
class Exporter:
    """One way to export the checkpoint.

    name: what tables call it. group: what --peers calls it and its variants. environment: where it
    is installed, the project's own unless given. command: a program of that environment and its
    arguments, in which {checkpoint}, {out} and {capacity} are filled in. whole: it exports a whole
    model, of which the layer is cut out; rope_export writes an artifact. forms: how its cache is
    run: "growing", "shared buffer" (past and present are one), "fixed" (written at an index), or
    "stream" for an artifact's own.
    """

    name: str
    group: str
    environment: str | None = None
    command: tuple[str, ...]
    whole: bool = True
    forms: tuple[str, ...] = ("growing",)


TORCH = ("python", "-m", "scripts.benchmarks.peers.torch_layer")
MOBIUS = ("mobius", "build", "--config", "{checkpoint}", "--dtype", "f32")
GENAI = ("python", "-m", "onnxruntime_genai.models.builder", "-m", "{checkpoint}", "-o", "{out}")
ROPE_EXPORT = ("rope-export", "export", "{checkpoint}", "--out", "{out}", "--no-verify")
OPTIMUM = ("optimum-cli", "export", "onnx", "--model", "{checkpoint}")

PEERS = (
    *(
        Exporter(
            name=f"torch.onnx, opset {opset}",
            group="torch",
            command=(*TORCH, "{checkpoint}", "{out}", str(opset)),
            whole=False,
        )
        for opset in (18, 23)
    ),
    Exporter(
        name="optimum-onnx",
        group="optimum",
        environment="optimum",
        command=(*OPTIMUM, "--task", "text-generation-with-past", "{out}"),
    ),
    Exporter(
        name="onnxruntime-genai",
        group="genai",
        environment="genai",
        command=(*GENAI, "-p", "fp32", "-e", "cpu"),
        forms=("growing", "shared buffer"),
    ),
    Exporter(
        name="mobius",
        group="mobius",
        environment="mobius",
        command=(*MOBIUS, "{out}"),
    ),
    Exporter(
        name="mobius --ep cpu",
        group="mobius",
        environment="mobius",
        command=(*MOBIUS, "--ep", "cpu", "{out}"),
        forms=("growing", "shared buffer"),
    ),
    Exporter(
        name="mobius --static-cache",
        group="mobius",
        environment="mobius",
        command=(*MOBIUS, "--static-cache", "--max-seq-len", "{capacity}", "{out}"),
        forms=("fixed",),
    ),
)


def own(spec: AttentionSpec) -> Iterator[Exporter]:
    """rope_export in every lowering and cache that can express `spec`, without and with padding."""
    for lowering in lowerings().values():
        for cache in lowering.caches:
            if cache == "none" or refusal(lowering, spec, cache) is not None:
                continue
            chosen = ("--lowering", lowering.name, "--cache", cache)
            for padding in ((), ("--padding",)):
                words = (f"rope_export {lowering.name}", cache, *padding)
                yield Exporter(
                    name=", ".join(words),
                    group=OURS,
                    command=(*ROPE_EXPORT, *chosen, *padding),
                    whole=False,
                    forms=("stream" if cache == "fixed" else "growing",),
                )


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What an export took: wall seconds of its process, and its largest resident bytes."""

    seconds: float
    peak: int


def export(exporter: Exporter, checkpoint: Path, out: Path) -> Cost:
    """Export `checkpoint` into the folder `out`, in a process of its own without the network.

    Raises: ExportError with the exporter's own message; NotInstalledError.
    """
    environment = ENVIRONMENTS[exporter.environment] if exporter.environment else None
    if environment:
        environment.ready()
    filled = {"checkpoint": str(checkpoint), "out": str(out), "capacity": str(CAPACITY)}
    name, *arguments = (word.format(**filled) for word in exporter.command)
    if exporter.group != OURS:  # ours makes its own
        out.mkdir(parents=True)
    log = out.with_name(f"{out.name}.log")
    cost, status = _watched([program(name, environment), *arguments], log, environment)
    if status != 0 or not (out / "model.onnx").is_file():
        reason = _reason(log.read_text(encoding="utf-8", errors="replace"), status)
        raise ExportError(reason.replace(f"{out.parent}/", ""))
    return cost


def warm(names: Iterable[str | None]) -> None:
    """Read the large packages of these environments from the disk, so that no export has to."""
    for name in names:
        environment = ENVIRONMENTS[name] if name else None
        if environment is None or environment.is_ready:
            imports = "import torch, transformers, onnx"
            subprocess.run([program("python", environment), "-c", imports], check=False)


def program(name: str, environment: Environment | None) -> str:
    """The path of a program of an environment, the project's own unless given."""
    return str((environment.programs if environment else Path(sys.executable).parent) / name)


def _watched(command: list[str], log: Path, environment: Environment | None) -> tuple[Cost, int]:
    """Run `command`, its words into `log`, looking at its memory until it ends.

    The kernel's own high-water mark is read: what wait4 gives starts with that of the parent.
    Raises: ExportError if it takes longer than LIMIT_SECONDS.
    """
    variables = os.environ | {"HF_HUB_OFFLINE": "1"}
    # A peer runs beside its output, where what it leaves behind is thrown away with it.
    folder = log.parent if environment else ROOT
    start, peak = time.perf_counter(), 0
    with log.open("w", encoding="utf-8") as words:
        process = subprocess.Popen(
            command, stdout=words, stderr=subprocess.STDOUT, env=variables, cwd=folder
        )
        while process.poll() is None:
            if time.perf_counter() - start > LIMIT_SECONDS:
                process.kill()
                process.wait()
                raise ExportError(f"stopped after {LIMIT_SECONDS} s")
            peak = max(peak, _high_water(process.pid))
            time.sleep(POLL_SECONDS)
    return Cost(seconds=time.perf_counter() - start, peak=peak), process.returncode


def _high_water(pid: int) -> int:
    """The most resident bytes that a process has had; 0 where the system does not say."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    match = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return 1024 * int(match[1]) if match else 0


def _reason(log: str, status: int) -> str:
    """The last line that names an error, or the last line there is."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return (named or lines or [f"exit status {status}"])[-1]

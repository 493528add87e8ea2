"""How much memory a contender needs, measured in a process of its own.

`python -m rope_export.bench.memory`, with one JSON object on stdin, is that process.
"""

import contextlib
import ctypes
import gc
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rope_export.artifacts.artifact import Artifact, layer_of
from rope_export.bench.baselines import BASELINES, blank_layer, torch
from rope_export.bench.contenders import ArtifactContender, Contender
from rope_export.bench.proof import RUNTIME
from rope_export.bench.shapes import Shape, drawn
from rope_export.errors import RopeExportError
from rope_export.runtimes import find_runtime
from rope_export.spec import AttentionSpec

CALLS = 3


def peak_growth(
    artifact: Path, kind: str | None, shape: Shape, threads: int | None, capacity: int | None
) -> int:
    """Bytes of resident memory that opening a contender and calling it a few times takes at most.

    kind: of a PyTorch contender, with weights of the artifact's spec; the artifact itself without.
    Raises: RopeExportError if it cannot be measured.
    """
    task = {
        "artifact": str(artifact),
        "kind": kind,
        "shape": vars(shape),
        "threads": threads,
        "capacity": capacity,
    }
    command = [sys.executable, "-m", "rope_export.bench.memory"]
    done = subprocess.run(
        command, input=json.dumps(task), capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"its process ended with {done.returncode}"]
        raise RopeExportError(lines[-1])
    return int(json.loads(done.stdout.splitlines()[-1])["peak_growth"])


def _measured(task: Mapping[str, Any]) -> int:
    """The larger of what is resident at most while the contender is opened and while it is called.

    Drawing inputs, trying the answer and compiling lie between the two and are not counted; the
    cache is, whoever holds it.
    """
    shape, artifact = Shape(**task["shape"]), Artifact.open(task["artifact"])
    find_runtime(
        RUNTIME
    ).unavailable()  # imports onnxruntime, so that its code is not counted either
    spec = AttentionSpec.from_json(layer_of(artifact).facts.spec)
    if task["threads"] is not None:
        torch.set_num_threads(task["threads"])
    before = _restart_peak()
    contender: Contender
    if task["kind"] is None:
        opening = {"threads": task["threads"], "capacity": task["capacity"]}
        contender = ArtifactContender("", artifact, **opening)
    else:
        (baseline,) = (baseline for baseline in BASELINES if baseline.kind == task["kind"])
        contender = baseline(blank_layer(spec))
    opened = _peak()
    with torch.no_grad():
        call = contender.prepare(shape, drawn(spec, shape, 0), None).call
        _give_back()
        _restart_peak()
        for _ in range(CALLS):
            call()
    return max(opened, _peak()) - before


def _give_back() -> None:
    """Return what Python and the C library keep for later to the system."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError, TypeError):  # glibc's own
        ctypes.CDLL(None).malloc_trim(0)


def _restart_peak() -> int:
    """Bytes resident now, from where the peak is counted anew."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return _peak()  # what was used before and given back then hides some of the growth
    return _peak()


def _peak() -> int:
    """Bytes that were resident at most.

    Not getrusage's figure where the system has another: that one starts at the size of the process
    that started this one.
    Source: Linux, fs/proc/task_mmu.c and fs/exec.c.
    """
    try:
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        import resource
    except ImportError:
        raise RopeExportError("this system does not tell how much memory was used") from None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    try:
        print(json.dumps({"peak_growth": _measured(json.load(sys.stdin))}))
    except RopeExportError as error:
        sys.exit(str(error))

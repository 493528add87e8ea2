"""Nothing wrong is timed: artifacts are verified first, and every contender's answer is compared.

The comparison at a measured shape is with eager PyTorch. Every input exchanged for the number next
to it, above or below at random, shows how far one rounding moves the output of this very call; the
K roundings of a longest chain, independent, move it sqrt(K) times as far, and two sound
implementations are apart by at most twice that. It is there to see gross faults at the measured
sizes, such as a wrong offset, mask or cache; the fine judgement is `verify`'s.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rope_export.arrays import dtype_name, to_numpy, to_torch
from rope_export.artifacts.folder import Folder, model_hashes
from rope_export.bench.shapes import Arrays, Shape
from rope_export.engines.plan import Engine
from rope_export.errors import RopeExportError, extra
from rope_export.runtimes import find_runtime
from rope_export.spec import AttentionSpec

with extra("export", "comparing with eager PyTorch"):
    from rope_export.attention.layer import RotaryAttention
    from rope_export.parity import verify
    from rope_export.parity.bounds import UNIT_ROUNDOFF
    from rope_export.parity.layer.chain import longest_reduction
    from rope_export.parity.rows import Row

RUNTIME = "onnxruntime"
"""Where artifacts are timed, and must have been proven; see `timed_on`."""

PRESSURE = 4
"""Copies of the scores that eager PyTorch holds at once."""

Progress = Callable[[str, float], None]


def timed_on(artifact: Folder) -> str:
    """The runtime: of an engine its own where the GPU is that it is for, RUNTIME otherwise.

    Raises: ArtifactError for an engine that the GPU or the module here does not take.
    """
    if not isinstance(artifact, Engine):
        return RUNTIME
    own = artifact.facts.engine
    return own if find_runtime(own).unavailable(artifact) is None else RUNTIME


class WrongError(RopeExportError):
    """A contender computes something else than eager PyTorch."""

    status = 1


@dataclass(frozen=True, kw_only=True)
class Proof:
    """The verdict of `verify` on an artifact where it is timed, now or in its evidence.

    error: of quantized weights the largest relative L2 error of the attention output, which is
    more than rounding makes and was let pass; 0 of others.
    reason: why nothing could be compared, or what failed.
    """

    status: Literal["passed", "failed", "nothing compared"]
    trusted: bool = False
    error: float = 0.0
    reason: str = ""


def prove(artifact: Folder, *, trust: bool, progress: Progress) -> Proof:
    """Verify an artifact and write down which files that was about.

    trust: believe a verdict "passed" in its evidence, if that was about the same files.
    """
    if trust:
        proof = _evidence(artifact)
        if proof is not None:
            return proof
    report = verify(artifact, progress=progress)
    place = timed_on(artifact)
    timed_rows = [row for row in report.rows if row.runtime == place]
    if report.status == "failed":
        failed = [row for row in report.rows if row.status == "failed"]
        first = f"{failed[0].case}, {failed[0].output} on {failed[0].runtime}"
        return Proof(status="failed", reason=f"{len(failed)} comparisons failed, first {first}")
    if not timed_rows:
        skipped = [x["reason"] for x in report.skipped if x["runtime"] == place]
        reason = skipped[0] if skipped else f"it is not made for {place}"
        return Proof(status="nothing compared", reason=reason)
    output = artifact.manifest.interface.main_output
    error = 0.0 if artifact.manifest.quantization is None else _worst(timed_rows, output)
    artifact.record(proven={"runtime": place, "files": model_hashes(artifact), "error": error})
    return Proof(status="passed", error=error)


def _evidence(artifact: Folder) -> Proof | None:
    """The proof that the artifact's evidence holds about its present files, or nothing."""
    evidence, files, place = artifact.evidence, model_hashes(artifact), timed_on(artifact)
    parity, own = evidence.get("parity", {}), evidence.get("proven", {})
    if parity.get("status") != "passed":
        return None
    if (own.get("runtime"), own.get("files")) == (place, files):
        return Proof(status="passed", trusted=True, error=own["error"])
    rows = [row for row in parity.get("worst", []) if row["runtime"] == place]
    # Of quantized weights this does not tell how far they are off.
    if parity.get("files") != files or not rows or artifact.manifest.quantization is not None:
        return None
    return Proof(status="passed", trusted=True)


def _worst(rows: Iterable[Row], output: str) -> float:
    """The largest relative L2 error of an output."""
    measure = (output, "relative L2")
    return max((row.error for row in rows if (row.output, row.metric) == measure), default=0.0)


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What eager PyTorch answers to one call, and how far a sound answer may be from it, in
    relative L2."""

    expected: np.ndarray
    tolerance: float

    @classmethod
    def of(cls, layer: RotaryAttention, inputs: Arrays, shape: Shape) -> "Truth":
        spec = layer.spec
        expected, moved = _eager(layer, inputs), _eager(layer, _rounded_once(inputs))
        once = max(apart(moved, expected), UNIT_ROUNDOFF[spec.dtype])
        chain = longest_reduction(spec, shape.total)
        return cls(expected=expected, tolerance=2 * chain**0.5 * once)

    def check(self, answer: np.ndarray, allowed: float) -> float:
        """How far `answer` is off.

        Raises: WrongError if it is off by more than `allowed`, or not of the right form.
        """
        expected, form = self.expected, f"{dtype_name(answer)}{answer.shape}"
        if (answer.shape, answer.dtype) != (expected.shape, expected.dtype):
            raise WrongError(f"gives {form}, eager {dtype_name(expected)}{expected.shape}")
        error = apart(answer, expected)
        if not error <= allowed:  # NaN is wrong too
            raise WrongError(f"is off by {error:.1e} of eager's output, {allowed:.1e} is allowed")
        return error


def _eager(layer: RotaryAttention, inputs: Arrays) -> np.ndarray:
    return to_numpy(layer(**{name: to_torch(x) for name, x in inputs.items()})[0])


def _rounded_once(inputs: Arrays) -> Arrays:
    """Every number but positions exchanged for the next number, above or below."""
    stream, moved = np.random.Generator(np.random.PCG64(0)), {}
    for name, value in inputs.items():
        if value.dtype.kind in "iu":
            moved[name] = value
            continue
        above = stream.integers(0, 2, value.shape, dtype=np.int8) == 1
        towards = np.where(above, np.inf, -np.inf).astype(value.dtype)
        moved[name] = np.nextafter(value, towards)
    return moved


def apart(actual: np.ndarray, expected: np.ndarray) -> float:
    """Relative L2 distance, in float64."""
    wide = expected.astype(np.float64)
    scale = float(np.linalg.norm(wide))
    distance = float(np.linalg.norm(actual.astype(np.float64) - wide))
    return distance if distance == 0 else distance / scale if scale else float("inf")


def impossible(spec: AttentionSpec, shape: Shape) -> str | None:
    """Why nothing can be compared at this shape, or nothing."""
    if shape.past and not spec.causal:
        return "a layer that sees later tokens has no cache, so past must be 0"
    needed = PRESSURE * 4 * shape.batch * spec.heads * shape.sequence * shape.total
    free = available_memory()
    if free is None or needed <= free:
        return None
    return (
        f"eager PyTorch, which answers are compared with, needs {needed / 1e9:.0f} GB for the "
        f"scores; {free / 1e9:.0f} GB are free"
    )


def available_memory() -> int | None:
    """Bytes that can be allocated without swapping, where the system tells."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return None

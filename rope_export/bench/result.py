"""What a benchmark found, as values that a table, a plot and a program can read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from rope_export.bench.machine import Machine
from rope_export.bench.roofline import Work
from rope_export.bench.shapes import Shape
from rope_export.bench.timing import Timing

Status = Literal["measured", "cannot", "wrong"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One contender at one shape.

    layer: what it computes; rows of one layer and shape can be compared. torch: it is a PyTorch
    one. reason: why it was not measured. error, allowed: how far its answer is from eager's, in
    relative L2, and may be.
    ratio: median of the best PyTorch contender over its own, above 1 where it is faster.
    """

    shape: Shape
    contender: str
    layer: int
    torch: bool
    status: Status
    reason: str = ""
    timing: Timing | None = None
    work: Work | None = None
    limit: float | None = None
    error: float | None = None
    allowed: float | None = None
    ratio: float | None = None

    @property
    def of_limit(self) -> float | None:
        """The share of the machine's limit that it reaches."""
        if self.timing is None or self.limit is None:
            return None
        return self.limit / self.timing.median

    @property
    def tokens_per_second(self) -> float | None:
        """New tokens of all rows a second."""
        if self.timing is None:
            return None
        return self.shape.batch * self.shape.sequence / self.timing.median

    def to_json(self) -> dict[str, Any]:
        timing, work = self.timing, self.work
        return {
            **vars(self.shape),
            "contender": self.contender,
            "status": self.status,
            "reason": self.reason or None,
            "median_ms": timing and 1e3 * timing.median,
            "low_ms": timing and 1e3 * timing.low,
            "high_ms": timing and 1e3 * timing.high,
            "interval_ms": timing and [1e3 * x for x in timing.interval],
            "rounds_ms": timing and [1e3 * x for x in timing.rounds],
            "calls": timing and timing.calls,
            "tokens_per_second": self.tokens_per_second,
            "bytes": work and work.bytes,
            "flops": work and work.flops,
            "limit_ms": None if self.limit is None else 1e3 * self.limit,
            "of_limit": self.of_limit,
            "ratio": self.ratio,
            "error": self.error,
            "allowed": self.allowed,
        }


def compared(rows: Sequence[Row]) -> list[Row]:
    """The rows with their ratio to the best PyTorch contender of their layer and shape."""
    best: dict[tuple[int, Shape], float] = {}
    for row in rows:
        if row.torch and row.timing is not None:
            key = (row.layer, row.shape)
            best[key] = min(row.timing.median, best.get(key, row.timing.median))
    return [
        replace(row, ratio=best[key] / row.timing.median)
        if row.timing is not None and (key := (row.layer, row.shape)) in best
        else row
        for row in rows
    ]


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Memory that a contender needs. peak: bytes of resident memory that opening and calling it
    took beyond what its process had, none with a reason if that could not be measured."""

    contender: str
    shape: Shape
    peak: int | None
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What `bench` found.

    artifacts: by name, where each lies and what it is. left_out: PyTorch contenders that cannot
    express the layer, with the reason. notes: what a reader of the figures should know. decoders:
    whether the artifacts are decoders, and not attention layers.
    """

    machine: Machine
    command: str
    artifacts: Mapping[str, Mapping[str, Any]]
    rows: tuple[Row, ...]
    left_out: Mapping[str, str]
    memory: tuple[Memory, ...]
    notes: tuple[str, ...]
    decoders: bool = False

    @property
    def status(self) -> Literal["measured", "wrong", "nothing measured"]:
        """ "wrong" if any contender is; "measured" if an artifact was, or none took part."""
        if any(row.status == "wrong" for row in self.rows):
            return "wrong"
        ours = [row for row in self.rows if not row.torch]
        any_measured = any(row.status == "measured" for row in ours or self.rows)
        return "measured" if any_measured else "nothing measured"

    def to_json(self) -> dict[str, Any]:
        """One object:

        status: "measured", "wrong" or "nothing measured". command, date, notes (list of lines).
        machine: cpu, cores, threads, bandwidth_gb_s, gemm_gflop_s, last_level_cache_bytes,
            background_cores (that other processes used while calls were timed).
        versions: of python and packages by name.
        artifacts: by name: path, lowering, opset, dtype, cache, padding, quantization, files
            (sha256 by name), parity ("passed", "failed", "nothing compared"), trusted, slots of a
            fixed cache or null where it has as many as the shape fills.
        rows: batch, sequence, past, contender; status "measured", "cannot" or "wrong" and its
            reason; median_ms of the rounds, low_ms and high_ms of them, interval_ms, 95 % for the
            median, rounds_ms, calls; tokens_per_second, new ones of all rows; bytes and flops that
            are needed, limit_ms, of_limit (limit over median); ratio (best PyTorch median over this
            one, above 1 where this is faster); error (relative L2 distance from eager's output) and
            what is allowed. Null what was not measured.
        left_out: contender and reason. memory: contender, its largest shape as batch, sequence and
            past, peak_bytes, reason.
        """
        limits = self.machine.limits
        return {
            "status": self.status,
            "command": self.command,
            "date": self.machine.date,
            "machine": {
                "cpu": self.machine.cpu,
                "cores": self.machine.cores,
                "threads": limits.threads,
                "bandwidth_gb_s": limits.bandwidth / 1e9,
                "gemm_gflop_s": limits.rate / 1e9,
                "last_level_cache_bytes": limits.cache_bytes,
                "background_cores": self.machine.background_cores,
            },
            "versions": dict(self.machine.versions),
            "artifacts": {name: dict(facts) for name, facts in self.artifacts.items()},
            "rows": [row.to_json() for row in self.rows],
            "left_out": [{"contender": n, "reason": r} for n, r in self.left_out.items()],
            "memory": [
                {
                    "contender": m.contender,
                    **vars(m.shape),
                    "peak_bytes": m.peak,
                    "reason": m.reason or None,
                }
                for m in self.memory
            ],
            "notes": list(self.notes),
        }

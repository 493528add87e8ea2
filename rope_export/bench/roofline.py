"""The shortest time a call can take on this machine: bytes over bandwidth, or flops over rate.

Source: Williams, Waterman and Patterson, Roofline, Commun. ACM 52 (2009).
"""

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rope_export.arrays import numpy_dtype
from rope_export.bench.shapes import Shape
from rope_export.errors import extra
from rope_export.interface import cached
from rope_export.spec import AttentionSpec

with extra("export", "measuring this machine's limits"):
    import torch

LEAST_BUFFER = 256 * 2**20
"""Bytes read for the bandwidth, if that is beyond four times the last-level cache."""

PROBE_SECONDS = 0.4
"""How long each way to read, and each size of a matrix, is repeated."""

GEMM_SIZES = (1024, 1536, 2048)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What this machine does at best with so many threads.

    bandwidth: bytes a second read from memory. rate: float32 flops a second in a matrix product.
    cache_bytes: size of the last-level cache, 0 where it is not known: what fits in it may be read
    faster than `bandwidth`.
    """

    threads: int
    bandwidth: float
    rate: float
    cache_bytes: int

    def seconds(self, work: "Work") -> float:
        """The shortest time of a call that does `work`, if its bytes come from memory."""
        return max(work.bytes / self.bandwidth, work.flops / self.rate)


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one call must do. bytes: that are read at least once, weights and valid slots of the
    cache. flops: of the projections and of the products with the visible keys and values."""

    bytes: int
    flops: int


def work(spec: AttentionSpec, shape: Shape, weight_bytes: int) -> Work:
    """The smallest work of one call, with its weights stored in `weight_bytes`.

    A latent's key and value projection is counted once for each new token: that is what absorbing
    it into the queries costs, the cheaper way of the two.
    """
    slots = cached(spec).values()
    entry = sum(math.prod(x for x in axes if isinstance(x, int)) for axes in slots)
    entry *= numpy_dtype(spec.dtype).itemsize
    tokens = shape.batch * shape.sequence
    matrices = (
        math.prod(size) for name, size in spec.weight_shapes.items() if name.endswith("proj.weight")
    )
    pairs = shape.batch * spec.heads * visible_pairs(spec, shape)
    return Work(
        bytes=weight_bytes + shape.batch * slots_read(spec, shape) * entry,
        flops=2 * tokens * sum(matrices) + 2 * pairs * (spec.head_dim + spec.value_head_dim),
    )


def slots_read(spec: AttentionSpec, shape: Shape) -> int:
    """Cached slots that at least one new token of a row sees."""
    seen = shape.past
    if spec.window is not None:
        seen = min(seen, spec.window - 1)
    if spec.chunk is not None:
        seen = min(seen, shape.past % spec.chunk)
    return seen


def visible_pairs(spec: AttentionSpec, shape: Shape) -> int:
    """Pairs of a new token and a slot that it sees, in one row."""
    own = shape.past + np.arange(shape.sequence, dtype=np.int64)
    first, last = np.zeros_like(own), own
    if not spec.causal:
        after = shape.total if spec.window_after is None else spec.window_after
        last = np.minimum(own + after, shape.total - 1)
    if spec.window is not None:
        first = np.maximum(first, own - spec.window + 1)
    if spec.chunk is not None:
        first = np.maximum(first, own // spec.chunk * spec.chunk)
        last = np.minimum(last, own // spec.chunk * spec.chunk + spec.chunk - 1)
    return int(np.sum(last - first + 1))


def weight_bytes(spec: AttentionSpec) -> int:
    """Bytes of the layer's weights in its own dtype."""
    return numpy_dtype(spec.dtype).itemsize * sum(map(math.prod, spec.weight_shapes.values()))


def measured_limits(threads: int) -> Limits:
    """Measure this machine, in about three seconds; torch must have `threads` threads."""
    size = last_level_cache()
    return Limits(
        threads=threads,
        bandwidth=measured_bandwidth(threads),
        rate=max(map(_gemm_rate, GEMM_SIZES)),
        cache_bytes=size,
    )


def measured_bandwidth(threads: int) -> float:
    """Bytes a second read from memory, by the best of several ways: none is the fastest on every
    machine. torch must have `threads` threads."""
    buffer = torch.ones(max(LEAST_BUFFER, 4 * last_level_cache()) // 4)
    rows, row = buffer.view(-1, 4096), torch.ones(4096)
    chunks = np.array_split(buffer.numpy(), threads)
    with ThreadPoolExecutor(threads) as pool:
        ways: tuple[Callable[[], object], ...] = (
            buffer.sum,
            lambda: torch.mv(rows, row),
            lambda: list(pool.map(np.max, chunks)),
        )
        return buffer.nbytes / min(map(_fastest, ways))


def _gemm_rate(size: int) -> float:
    a, b, c = torch.ones(size, size), torch.ones(size, size), torch.empty(size, size)
    return 2 * size**3 / _fastest(lambda: torch.mm(a, b, out=c))


def _fastest(call: Callable[[], object]) -> float:
    """Seconds of the fastest of at least three calls."""
    start, best, calls = time.perf_counter(), math.inf, 0
    while calls < 3 or time.perf_counter() - start < PROBE_SECONDS:
        before = time.perf_counter()
        call()
        best, calls = min(best, time.perf_counter() - before), calls + 1
    return best


def last_level_cache() -> int:
    """Bytes of the largest cache of the first core, 0 where the system does not tell."""
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    sizes = [0]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text(encoding="ascii").strip()
        sizes.append(int(text.rstrip("KMG")) * units.get(text[-1:], 1))
    return max(sizes)

"""Every fault in the lowerings and dtypes that have its feature, and sound artifacts."""

import functools
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from rope_export import verify
from rope_export.lowerings import lowerings, refusal
from rope_export.spec import AttentionSpec
from tests.conformance.faults.faults import FAULTS, LISTED
from tests.conformance.faults.layers import LAYERS, layer
from tests.conformance.faults.planting import Fault, artifact, patched

DTYPES = ("float32", "float16")

KINDS = ("padding", "fixed", "no cache")
"""What may follow a layer's name."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The verdict of `verify` on one artifact. case, error, tolerance: of the row that used most of
    its tolerance in the runtime. fault: empty for a sound one; kind: of it. tensor, diagnosis: of
    the first wrong tensor as `verify` names it. expected: the one of the file's tensors that is."""

    layer: str
    fault: str
    lowering: str
    dtype: str
    status: str
    failed: int
    case: str
    error: float
    tolerance: float
    hidden: tuple[str, ...]
    tensor: str = ""
    expected: str = ""
    diagnosis: str = ""
    kind: str = ""

    @property
    def named(self) -> bool:
        """Whether the right first tensor is named."""
        return bool(self.tensor) and self.tensor == self.expected


def ways(spec: AttentionSpec, cache: str) -> list[str]:
    """Lowerings that can express the layer."""
    every = lowerings()
    return [name for name in every if refusal(every[name], spec, cache) is None]


def kind(name: str, spec: AttentionSpec) -> tuple[str, str, bool]:
    """The layer's own name, and the cache and padding that go with it."""
    plain, _, more = name.rpartition(", ")
    if more not in KINDS:
        plain, more = name, ""
    growing = "growing" if spec.causal else "none"
    cache = {"fixed": "fixed", "no cache": "none"}.get(more, growing)
    return plain, cache, more == "padding"


def spec_of(name: str, dtype: str) -> AttentionSpec:
    plain, _, more = name.rpartition(", ")
    return layer(plain if more in KINDS else name, dtype)


def planned() -> Iterator[tuple[str, Fault, str, str]]:
    """Layer, fault, lowering and dtype of every artifact with a fault: in every lowering, dtypes in
    turns, but what passed once in both."""
    able = {(name, fault): list(able_ways(name, fault)) for name, fault in FAULTS}
    for round_ in range(len(lowerings())):  # so that a run that is cut short has every fault
        for turn, ((name, fault), every) in enumerate(able.items()):
            if round_ < len(every):
                dtypes = fault.dtypes or DTYPES
                way, dtype = every[(turn + round_) % len(every)], (turn + round_) % len(dtypes)
                yield name, fault, way, dtypes[dtype]
                if (name, fault) in LISTED:
                    yield name, fault, way, dtypes[1 - dtype]


def able_ways(name: str, fault: Fault) -> Iterator[str]:
    """The lowerings that can have the fault."""
    return (way for way in lowerings() if unable(name, fault, way) is None)


def unable(name: str, fault: Fault, way: str) -> str | None:
    """Why a lowering cannot have a fault, or nothing."""
    spec = spec_of(name, "float32")
    refused = refusal(lowerings()[way], spec, kind(name, spec)[1])
    if refused is not None:
        return refused
    return fault.why if fault.lowerings and way not in fault.lowerings else None


def judged(
    name: str,
    fault: Fault | None,
    lowering: str,
    dtype: str,
    cache: str | None = None,
    padding: bool | None = None,
) -> Verdict:
    """The verdict on one artifact; cache and padding by the layer's name, unless given."""
    spec = spec_of(name, dtype)
    _, own_cache, own_padding = kind(name, spec)
    with tempfile.TemporaryDirectory() as folder:
        made = artifact(
            spec,
            Path(folder) / "artifact",
            lowering=lowering,
            cache=own_cache if cache is None else cache,
            padding=own_padding if padding is None else padding,
            fault=fault,
        )
        in_eager = fault is not None and fault.in_module
        with patched(fault) if fault is not None and in_eager else nullcontext():
            report = verify(made, runtimes=["onnxruntime"])
    rows = [row for row in report.rows if row.runtime == "onnxruntime"]
    worst = max(rows, key=lambda row: row.used)
    located = next((x for x in report.located if x.runtime == "onnxruntime"), None)
    there = [] if located is None else [tap.tensor for tap in located.taps]
    expected = () if fault is None else fault.first
    others = {r.runtime for r in report.rows if r.status == "failed"} - {"onnxruntime"}
    others -= {"eager"} if in_eager else set()
    return Verdict(
        layer=name,
        fault="" if fault is None else fault.name,
        lowering=lowering,
        dtype=dtype,
        status="unsound" if others else report.status,
        failed=sum(row.status == "failed" for row in rows),
        case=worst.case,
        error=worst.error,
        tolerance=worst.tolerance,
        hidden=tuple(f"{x['feature']}: {x['reason']}" for x in report.not_visible),
        tensor="" if located is None else located.tensor,
        expected=next((x for x in expected if x in there), ""),
        diagnosis="" if located is None else located.diagnosis,
        kind="" if fault is None else fault.kind,
    )


def sound() -> Iterator[tuple[str, str, str, str, bool]]:
    """Layer, lowering, dtype, cache and padding of sound artifacts; the last two take turns, and
    every other layer of float32 has two of them."""
    at = 0
    for name, dtype in product(LAYERS, DTYPES):
        spec = layer(name, dtype)
        kinds = [("growing", False), ("fixed", True), ("growing", True), ("fixed", False)]
        kinds = kinds if spec.causal else [("none", False), ("none", True)]
        for way in lowerings():
            able = [x for x in kinds if refusal(lowerings()[way], spec, x[0]) is None]
            if able:
                yield name, way, dtype, *able[at % len(able)]
                at += 1
            if len(able) > 1 and dtype == "float32" and at % 2:
                yield name, way, dtype, *able[at % len(able)]


@functools.cache
def work() -> tuple[tuple[Any, ...], ...]:
    """What `judged` takes for every artifact, those with a fault first."""
    return (
        *planned(),
        *((name, None, way, dtype, *kept) for name, way, dtype, *kept in sound()),
    )


def title(name: str, fault: Fault | None, *ways: object) -> str:
    """A name for one of `work`."""
    return ", ".join(str(x) for x in (name, "sound" if fault is None else fault.name, *ways))


def numbered(at: int) -> Verdict:
    """The verdict on one of `work`, in a process that knows it by its number."""
    return judged(*work()[at])

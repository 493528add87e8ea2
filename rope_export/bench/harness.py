"""Times artifacts and the layer in PyTorch on the same calls, shape by shape.

Only what is right is timed: see `proof`. How, is in `timing`; what the limit is, in `roofline`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rope_export.artifacts.folder import Folder, hashes
from rope_export.bench.contenders import CannotError, Ready
from rope_export.bench.decoders import all_decoders, decoder_rows, is_decoder
from rope_export.bench.entrants import Choice, Entrant, Layer, layers, named
from rope_export.bench.machine import BackgroundLoad, Machine
from rope_export.bench.proof import RUNTIME, Proof, Truth, WrongError, impossible, prove, timed_on
from rope_export.bench.result import Bench, Memory, Row, compared
from rope_export.bench.roofline import Limits, measured_limits, work
from rope_export.bench.shapes import DEFAULT, Arrays, Shape, drawn
from rope_export.bench.timing import Call, Plan, measure
from rope_export.engines.plan import Engine
from rope_export.environment import cores
from rope_export.errors import InputError, RopeExportError, extra
from rope_export.typed_json import plain

with extra("export", "benchmarking"):
    import torch

Progress = Callable[[str, float | None], None]


def benchmark(
    artifacts: Sequence[str | Path],
    *,
    shapes: Sequence[Shape] = DEFAULT,
    choice: Choice | None = None,
    plan: Plan | None = None,
    threads: int | None = None,
    capacity: int | None = None,
    trust: bool = False,
    memory: bool = False,
    command: str = "",
    progress: Progress = lambda step, done: None,
) -> Bench:
    """Times artifacts and PyTorch on the same calls, after proving that they compute the same.

    artifacts: their folders, all of attention layers or all of decoders; of decoders no answer is
    compared at a shape, and nothing in PyTorch takes part. shapes: of the calls. choice: who takes
    part; all unless given. plan: of the timing. threads: of PyTorch and onnxruntime; all cores
    unless given. capacity: slots of fixed caches; as many as a shape fills unless given. trust: do
    not verify an artifact again whose evidence says that these files passed. memory: measure what
    each contender needs, in processes of their own. command: to reprint it. progress: called with
    the name of each step and, where known, the share that is done.
    Raises: InputError for a parameter that is not valid; ArtifactError for a folder that holds no
        artifact.
    """
    choice, plan = choice or Choice(), plan or Plan()
    for name, value in (("threads", threads), ("capacity", capacity)):
        if value is not None and value < 1:
            raise InputError(f"`{name}`={value}: it must be 1 or more.")
    opened, background = named(artifacts), BackgroundLoad()
    choice.check(opened)
    decoders = all_decoders(opened)
    if decoders:
        _check_for_decoders(choice, memory)
    used = cores() if threads is None else threads
    with ExitStack() as stack:
        stack.enter_context(_torch_threads(used))
        proofs = _proofs(opened, choice, trust, progress)
        progress("measuring this machine", None)
        limits = measured_limits(used)
        rows: list[Row] = []
        if decoders:
            options: dict[str, Any] = {"threads": threads, "capacity": capacity, "plan": plan}
            options |= {"limits": limits, "background": background, "progress": progress}
            rows += decoder_rows(opened, proofs, shapes, **options)
        of_layers = {} if decoders else opened
        field = layers(of_layers, proofs, choice, stack, threads=threads, capacity=capacity)
        for at, shape in enumerate(shapes):
            for number, layer in enumerate(field):
                share = _share(progress, shape, at, number, len(shapes), len(field))
                rows += _rows(shape, number, layer, limits, plan, background, share)
    compared_rows, machine = compared(rows), Machine.here(cores(), limits, background.cores)
    return Bench(
        machine=machine,
        command=command,
        artifacts={name: _facts(a, proofs.get(name), capacity) for name, a in opened.items()},
        rows=tuple(compared_rows),
        left_out={name: reason for layer in field for name, reason in layer.left_out.items()},
        memory=_memory(field, compared_rows, threads, capacity, progress) if memory else (),
        notes=tuple(_notes(opened, machine)),
        decoders=decoders,
    )


def _check_for_decoders(choice: Choice, memory: bool) -> None:
    """Raises: InputError for what is measured of attention layers alone."""
    if choice.against:
        raise InputError(
            f"`against`={choice.against[0]}: decoders are not timed beside PyTorch; leave it out."
        )
    if memory:
        raise InputError("`memory`: it is measured of attention layers alone; leave it out.")


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    """Runs the block without gradients, on `threads` threads of PyTorch."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_num_threads(before)


def _proofs(
    artifacts: Mapping[str, Folder], choice: Choice, trust: bool, progress: Progress
) -> dict[str, Proof]:
    """The proof of each artifact that takes part, by its name."""
    proofs = {}
    for name in filter(choice.takes, artifacts):

        def step(case: str, done: float | None, name: str = name) -> None:
            progress(f"verifying {name}: {case}", done)

        proofs[name] = prove(artifacts[name], trust=trust, progress=step)
    return proofs


def _share(
    progress: Progress, shape: Shape, at: int, number: int, shapes: int, layers: int
) -> Callable[[str, float], None]:
    """Progress of one shape and layer as a share of all of them."""
    return lambda what, done: progress(
        f"{shape.name}: {what}", (at + (number + done) / layers) / shapes
    )


def _rows(
    shape: Shape,
    number: int,
    layer: Layer,
    limits: Limits,
    plan: Plan,
    background: BackgroundLoad,
    progress: Callable[[str, float], None],
) -> list[Row]:
    """Every contender of a layer at one shape, those first that are not run."""
    common: dict[str, Any] = {"shape": shape, "layer": number}
    rows = {
        name: Row(contender=name, torch=False, status=status, reason=reason, **common)
        for name, (status, reason) in layer.refused.items()
    }
    calls: dict[str, Call] = {}
    inputs, truths = drawn(layer.spec, shape, plan.seed), _Truths(shape)
    for entrant in layer.entrants:
        name = entrant.contender.name
        progress(f"preparing {name}", 0.0)
        minimum = work(layer.spec, shape, entrant.contender.weight_bytes)
        common |= {"work": minimum, "limit": limits.seconds(minimum)}
        common |= {"contender": name, "torch": entrant.kind is not None}
        try:
            ready = _ready(entrant, shape, inputs, truths)
        except WrongError as error:
            rows[name] = Row(status="wrong", reason=str(error), **common)
        except CannotError as error:
            rows[name] = Row(status="cannot", reason=str(error), **common)
        else:
            rows[name] = Row(status="measured", error=ready.error, allowed=ready.allowed, **common)
            calls[name] = ready.call
    with background.watched():
        timings = measure(calls, plan, progress=lambda done: progress("timing", done))
    return [replace(row, timing=timings.get(name)) for name, row in rows.items()]


def _ready(entrant: Entrant, shape: Shape, inputs: Arrays, truths: "_Truths") -> Ready:
    reason = impossible(entrant.contender.spec, shape)
    if reason is not None:
        raise CannotError(reason)
    return entrant.contender.prepare(shape, inputs, truths(entrant, inputs))


class _Truths:
    """Eager's answer at one shape, once for every set of weights."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.truths: dict[int, Truth] = {}

    def __call__(self, entrant: Entrant, inputs: Arrays) -> Truth:
        key = id(entrant.module)
        if key not in self.truths:
            self.truths[key] = Truth.of(entrant.module, inputs, self.shape)
        return self.truths[key]


def _memory(
    field: Sequence[Layer],
    rows: Sequence[Row],
    threads: int | None,
    capacity: int | None,
    progress: Progress,
) -> tuple[Memory, ...]:
    """What every contender needs at the largest shape it was measured at."""
    from rope_export.bench.memory import peak_growth

    peaks = []
    for entrant in (entrant for layer in field for entrant in layer.entrants):
        name = entrant.contender.name
        shapes = [r.shape for r in rows if r.contender == name and r.status == "measured"]
        if not shapes:
            continue
        shape = max(shapes, key=lambda s: s.batch * s.total)
        progress(f"memory of {name}", None)
        try:
            peak = peak_growth(entrant.artifact.path, entrant.kind, shape, threads, capacity)
            peaks.append(Memory(contender=name, shape=shape, peak=peak))
        except RopeExportError as error:
            peaks.append(Memory(contender=name, shape=shape, peak=None, reason=str(error)))
    return tuple(peaks)


def _facts(artifact: Folder, proof: Proof | None, capacity: int | None) -> dict[str, Any]:
    manifest = artifact.manifest
    names = ("lowering", "opset", "dtype", "cache", "padding", "quantization")
    return {
        "path": str(artifact.path),
        **{name: plain(getattr(manifest, name, None)) for name in names},
        "files": hashes(manifest),
        "parity": proof and proof.status,
        "trusted": proof is not None and proof.trusted,
        "slots": capacity if manifest.cache == "fixed" else None,
    }


def _notes(artifacts: Mapping[str, Folder], machine: Machine) -> Iterator[str]:
    limits = machine.limits
    for name, artifact in artifacts.items():
        if isinstance(artifact, Engine):
            where = timed_on(artifact)
            yield (
                f"{name} is an engine, timed on {where}: "
                + (
                    "not its plan but its ONNX model, for the GPU is not here."
                    if where == RUNTIME
                    else "with its tensors copied to the GPU and back."
                )
            )
    small = [
        name
        for name, artifact in artifacts.items()
        if sum(file.bytes for file in artifact.manifest.files.values()) <= limits.cache_bytes
    ]
    if small:
        yield (
            f"the weights of {', '.join(small)} fit in the last-level cache of "
            f"{limits.cache_bytes / 1e6:.0f} MB, which is read faster than memory: more than 100 % "
            f"of the limit is possible."
        )
    if not machine.quiet:
        yield (
            f"not a quiet machine: other processes took {machine.background_cores:.1f} of "
            f"{machine.cores} cores meanwhile. Times are too long"
            + (
                "; do not believe the tokens a second."
                if all(map(is_decoder, artifacts.values()))
                else ", PyTorch's most of all, whose threads wait for one another; do not believe "
                "the speed-ups."
            )
        )

"""Proof that an artifact computes, on every runtime, what eager PyTorch computes.

A row passes when the runtime's error is at most twice eager's own, both against a float64
reference, and eager's is within an a-priori bound on rounding: see `bounds` for both figures.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from rope_export.arrays import to_numpy
from rope_export.artifacts.artifact import Artifact, Manifest
from rope_export.engines.plan import Engine
from rope_export.errors import UnavailableError, extra
from rope_export.quantization import Quantization
from rope_export.runtimes import find_runtime
from rope_export.sessions import Session, open_session

with extra("export", "comparing with eager PyTorch"):
    import torch

    from rope_export.attention.layer import RotaryAttention
    from rope_export.parity.engine.corners import corners
    from rope_export.parity.engine.numbers import numbers, structure
    from rope_export.parity.judge import Judge
    from rope_export.parity.layer.cases import Case, cases
    from rope_export.parity.layer.inv_freq import frequencies
    from rope_export.parity.layer.limits import limits
    from rope_export.parity.layer.properties import properties
    from rope_export.parity.layer.reference import ReferenceLayer
    from rope_export.parity.layer.visible import visible
    from rope_export.parity.layer.weights import true_weights
    from rope_export.parity.metrics import errors
    from rope_export.parity.reading.sources import reading
    from rope_export.parity.report.result import Report
    from rope_export.parity.rows import Row
    from rope_export.spec import AttentionSpec

Progress = Callable[[str, float], None]


def verify(
    artifact: str | Path | Artifact,
    *,
    source: str | Path | None = None,
    adapter: str | Path | None = None,
    runtimes: Sequence[str] | None = None,
    seed: int = 0,
    large: bool = False,
    progress: Progress = lambda step, done: None,
) -> Report:
    """Compare an artifact with eager PyTorch and a float64 reference; its evidence records it, if
    anything was compared.

    Of an engine the ONNX model is compared at the corners of its profiles as well, and its plan
    where the GPU is that it is for: until then the report's numbers are unverified.

    artifact: its folder, or an open Artifact or Engine. source: the checkpoint its weights come
    from, if it is not where it was when it was exported. adapter: the one that was merged into
    them, if it has moved. runtimes: names to compare; without, those the artifact is made for that
    are available here. seed: of the drawn inputs. large: also those corners of an engine that take
    minutes and gigabytes. progress: called with the name of each case and the share that is done.
    Raises: ArtifactError and CheckpointError for what cannot be read; UnavailableError if a runtime
        that was asked for does not exist.
    """
    # Its files are in memory from here on: the verdict is about them, whatever replaces them.
    opened = artifact.hold() if isinstance(artifact, Artifact) else Artifact.holding(Path(artifact))
    manifest = opened.manifest
    spec = AttentionSpec.from_json(manifest.spec)
    given = None if source is None else str(source)
    weights = true_weights(opened, spec, given, seed, None if adapter is None else str(adapter))
    progress("asking transformers", 0.0)
    report = Report(
        weights=weights.verdict,
        rows=weights.rows,
        reading=reading(spec, manifest.source, *_where(opened, given, adapter)),
    )
    # What is not finite fails its row, without a word from numpy.
    with ExitStack() as stack, _exact_eager(), np.errstate(over="ignore", invalid="ignore"):
        sessions = _open(opened, runtimes, report, stack)
        judge = Judge(
            eager=RotaryAttention.from_weights(spec, weights.tensors),
            layer=ReferenceLayer(
                spec,
                {name: to_numpy(w.double()) for name, w in weights.tensors.items()},
                frequencies(spec),
            ),
            sessions=sessions,
            outputs=[tensor.name for tensor in manifest.outputs],
            report=report,
            seed=seed,
            int8_blocks=_int8_blocks(manifest),
        )
        every = list(cases(manifest))
        if isinstance(opened, Engine):
            found = corners(opened.facts, spec, large=large)
            every += [case for case in found.cases if case not in every]
            report.left_out += found.left_out
            report.rows += structure(opened, seed)
        known = list(properties(judge.layer, manifest, seed))
        progress("looking for calls that show every feature", 0.0)
        shown = visible(judge, manifest, limits(opened))
        report.not_visible += shown.not_visible
        for at, case in enumerate(every):
            progress(case.name, at / (len(every) + len(known)))
            judge.case(case, case.inputs(judge.layer, manifest, seed))
        for ready in shown.cases:
            if ready.case not in every:
                judge.judge(ready)
        for at, known_property in enumerate(known, len(every)):
            progress(known_property.name, at / (len(every) + len(known)))
            judge.property(known_property)
    judge.finish()
    for name, count in judge.outside.items():
        report.left_out.append(f"{count} cases lie outside of the engine's profiles on {name}.")
    if isinstance(opened, Engine):
        report.numbers = numbers(opened, report)
    if weights.original is not None:
        report.quantization_error = _quantization_error(
            judge.layer, weights.original, manifest, seed
        )
    if report.status != "nothing compared":  # which says nothing, and must not hide what did
        report.keep(opened.record(parity=_evidence(report, manifest, seed)))
    return report


def _where(
    artifact: Artifact, source: str | None, adapter: str | Path | None
) -> tuple[str | None, str | None]:
    """Where the source and its adapter are now, if they are still where they were."""
    found = []
    for name, given in (("source", source), ("adapter", adapter)):
        path = artifact.evidence.get(name)
        there = path if path is not None and Path(path).exists() else None
        found.append(there if given is None else str(given))
    return found[0], found[1]


def _int8_blocks(manifest: Manifest) -> dict[str, int]:
    """How many features share a scale, by the projection that rounds them to int8."""
    how = Quantization.from_json(manifest.quantization)
    if how is None or how.accuracy_level != 4:
        return {}
    return {
        name.removesuffix("_proj.weight"): facts.get("block_size", how.block_size)
        for name, facts in manifest.weights.items()
        if "scales" in facts
    }


def _quantization_error(
    layer: ReferenceLayer, original: Mapping[str, torch.Tensor], manifest: Manifest, seed: int
) -> dict[str, float]:
    """The error that quantized weights bring: the layer's output against that of the weights
    of the source, both in float64, on 64 tokens of two rows."""
    inputs = Case(batch=2, sequence=64).inputs(layer, manifest, seed)
    exact = {name: to_numpy(w.double()) for name, w in original.items()}
    wanted = ReferenceLayer(layer.spec, exact, layer.inv_freq)(inputs).output
    return errors(layer(inputs).output - wanted, wanted)


def _open(
    artifact: Artifact, names: Sequence[str] | None, report: Report, stack: ExitStack
) -> dict[str, Session]:
    """A session on each runtime that can run the artifact; the others are reported as skipped.

    Without names, the slow reference evaluator is used only where nothing else can run.
    """
    sessions: dict[str, Session] = {}
    for name in names or artifact.manifest.runtimes:
        if names is None and name == "reference" and sessions:
            continue
        reason = find_runtime(name).unavailable(artifact.manifest)
        try:
            if reason is None:
                sessions[name] = stack.enter_context(open_session(artifact, name))
                continue
        except UnavailableError as error:
            reason = str(error)
        report.skipped.append({"runtime": name, "reason": reason})
    return sessions


@contextmanager
def _exact_eager() -> Iterator[None]:
    """Eager matrix products in full precision, whatever the process had set."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def _evidence(report: Report, manifest: Manifest, seed: int) -> dict[str, object]:
    worst: dict[str, Row] = {}
    for row in report.rows:
        if row.runtime not in worst or row.used > worst[row.runtime].used:
            worst[row.runtime] = row
    return {
        "status": report.status,
        "weights": report.weights,
        "reading": report.reading.to_json(),
        "files": {name: facts["sha256"] for name, facts in manifest.files.items()},
        "seed": seed,
        "rows": len(report.rows),
        "failed": sum(row.status == "failed" for row in report.rows),
        "worst": [row.to_json() for row in worst.values()],
        "skipped": report.skipped,
        "quantization_error": report.quantization_error,
        "numbers": report.numbers,
        "left_out": report.left_out,
        "not_visible": report.not_visible,
        "eager": {"torch": torch.__version__, "device": "cpu", "tf32": False},
    }

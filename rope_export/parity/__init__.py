"""Proof that an artifact computes, on every runtime, what eager PyTorch computes.

A row passes when the runtime's error is at most twice eager's own, both against a float64
reference, and eager's is within an a-priori bound on rounding: see `bounds` for both figures.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from rope_export.artifact import Artifact, Manifest
from rope_export.contract import cache_names, cached
from rope_export.engines.plan import Engine
from rope_export.errors import ProfileError, RopeExportError, UnavailableError, extra
from rope_export.quantized import Quantization
from rope_export.runtimes import Session, open_session, runtime, to_numpy, to_torch

with extra("export", "comparing with eager PyTorch"):
    import torch

    from rope_export.attention import RotaryAttention
    from rope_export.parity.bounds import ceiling, floors
    from rope_export.parity.cases import Case, cases
    from rope_export.parity.corners import corners
    from rope_export.parity.metrics import errors
    from rope_export.parity.numbers import numbers, structure
    from rope_export.parity.properties import Property, properties
    from rope_export.parity.reference import ReferenceLayer, Trace
    from rope_export.parity.rows import Report, Row, counted, judged
    from rope_export.parity.weights import true_weights
    from rope_export.spec import AttentionSpec

__all__ = ["Report", "Row", "verify"]

Arrays = dict[str, np.ndarray]
Progress = Callable[[str, float], None]


def verify(
    artifact: str | Path | Artifact,
    *,
    source: str | Path | None = None,
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
    from, if it is not where it was when it was exported. runtimes: names to compare; without, those
    the artifact is made for that are available here. seed: of the drawn inputs. large: also those
    corners of an engine that take minutes and gigabytes. progress: called with the name of each
    case and the share that is done.
    Raises: ArtifactError and CheckpointError for what cannot be read; UnavailableError if a runtime
        that was asked for does not exist.
    """
    opened = Artifact.open(artifact)
    manifest = opened.manifest
    spec = AttentionSpec.from_json(manifest.spec)
    weights = true_weights(opened, spec, None if source is None else str(source), seed)
    report = Report(weights=weights.verdict, rows=weights.rows)
    with ExitStack() as stack, _exact_eager():
        sessions = _open(opened, runtimes, report, stack)
        judge = _Judge(
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
            int8_block=_int8_block(manifest),
        )
        every = list(cases(manifest))
        if isinstance(opened, Engine):
            found = corners(opened.facts, spec, large=large)
            every += [case for case in found.cases if case not in every]
            report.left_out += found.left_out
            report.rows += structure(opened, seed)
        known = list(properties(judge.layer, manifest, seed))
        for at, case in enumerate(every):
            progress(case.name, at / (len(every) + len(known)))
            judge.case(case, case.inputs(judge.layer, manifest, seed))
        for at, known_property in enumerate(known, len(every)):
            progress(known_property.name, at / (len(every) + len(known)))
            judge.property(known_property)
    for name, count in judge.outside.items():
        report.left_out.append(f"{count} cases lie outside of the engine's profiles on {name}.")
    if isinstance(opened, Engine):
        report.numbers = numbers(opened, report)
    if weights.original is not None:
        report.loss = _loss(judge.layer, weights.original, manifest, seed)
    if report.status != "nothing compared":  # which says nothing, and must not hide what did
        opened.record(parity=_evidence(report, manifest, seed))
    return report


def _int8_block(manifest: Manifest) -> int | None:
    """How many features share a scale, where the artifact's kernels round activations to int8."""
    how = Quantization.from_json(manifest.quantization)
    return how.block_size if how is not None and how.accuracy_level == 4 else None


def _loss(
    layer: ReferenceLayer, original: Mapping[str, torch.Tensor], manifest: Manifest, seed: int
) -> dict[str, float]:
    """What storing the weights in few bits costs: the layer's output against that of the weights
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
        reason = runtime(name).unavailable(artifact.manifest)
        try:
            if reason is None:
                sessions[name] = stack.enter_context(open_session(artifact, name))
                continue
        except UnavailableError as error:
            reason = str(error)
        report.skipped.append({"runtime": name, "reason": reason})
    return sessions


def frequencies(spec: AttentionSpec) -> Callable[[int], np.ndarray]:
    """inv_freq of a call by its length: the variant's own, proven against transformers."""
    rope = spec.rope

    def at(length: int) -> np.ndarray:
        assert rope is not None
        given = torch.tensor(length) if rope.depends_on_length else None
        return to_numpy(rope.inv_freq(given))

    return at


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


class _Judge:
    """Runs eager, the reference and every session on the same inputs, and writes the rows."""

    def __init__(
        self,
        *,
        eager: RotaryAttention,
        layer: ReferenceLayer,
        sessions: Mapping[str, Session],
        outputs: Sequence[str],
        report: Report,
        seed: int,
        int8_block: int | None = None,
    ) -> None:
        self.eager, self.layer, self.sessions = eager, layer, sessions
        self.rough = layer.rounding(int8_block)
        self.outside: Counter[str] = Counter()
        self.outputs, self.report, self.seed = outputs, report, seed
        pairs = [cache_names(x, kind) for x in cached(layer.spec) for kind in ("growing", "fixed")]
        self.before = {after: before for before, after in pairs}

    def run_eager(self, inputs: Arrays) -> Arrays:
        values = self.eager(**{name: to_torch(value) for name, value in inputs.items()})
        return {n: to_numpy(v) for n, v in zip(self.outputs, values, strict=False)}

    def case(self, case: Case, inputs: Arrays) -> None:
        """Judge the attention output where a token attends to something, the new part of the cache
        by error, and bit for bit what was there before; what lies beyond is nobody's."""
        trace = self.layer(inputs)
        bound = ceiling(self.layer, trace)
        eager = self.run_eager(inputs)
        differences = {name: _judged(trace, name, eager[name]) for name in self.outputs}
        eager_errors = {name: errors(*pair) for name, pair in differences.items()}
        ceilings = self._ceilings(trace, bound, differences)
        rough = ceilings
        if self.rough is not self.layer:
            rough = self._ceilings(trace, ceiling(self.rough, trace), differences)
        for name, session in {"eager": None, **self.sessions}.items():
            given = eager if session is None else self._run(session, case.name, name, inputs)
            for output in self.outputs if given is not None else ():
                assert given is not None
                if not self._same_form(case.name, name, output, given[output], eager[output]):
                    continue
                self.report.rows += judged(
                    case=case.name,
                    seed=self.seed,
                    runtime=name,
                    output=output,
                    errors=errors(*_judged(trace, output, given[output])),
                    eager_errors=eager_errors[output],
                    ceilings=ceilings[output],
                    floors=floors(
                        self.layer.spec,
                        case.total,
                        rough[output],
                        differences[output][1].size,
                    ),
                )
                if output in self.before and np.any(trace.starts):
                    changed = _changed(given[output], inputs[self.before[output]], trace.starts)
                    self._count(case.name, name, output, "past values changed", changed)

    def _ceilings(
        self,
        trace: Trace,
        bound: Arrays,
        differences: Mapping[str, tuple[np.ndarray, np.ndarray]],
    ) -> dict[str, dict[str, float]]:
        """The bounds on each output's elements, as errors by each metric."""
        return {
            name: errors(
                _judged(trace, name, trace.outputs[name] + bound[name])[0],
                differences[name][1],
            )
            for name in self.outputs
        }

    def property(self, known: Property) -> None:
        """Judge how far the two sides are apart, in eager and on every runtime."""
        here, there = known.sides(self.run_eager)
        eager_errors = errors(here - there, there)
        ceilings = errors(known.bound(self.layer), there)
        rough = errors(known.bound(self.rough), there)
        for name, session in {"eager": None, **self.sessions}.items():
            try:
                sides = (here, there) if session is None else known.sides(_runner(session))
            except ProfileError:
                self.outside[name] += 1
                continue
            except RopeExportError as error:
                self._failed(known.name, name, error)
                continue
            self.report.rows += judged(
                case=known.name,
                seed=self.seed,
                runtime=name,
                output=known.output,
                errors=errors(sides[0] - sides[1], sides[1]),
                eager_errors=eager_errors,
                ceilings=ceilings,
                floors=floors(self.layer.spec, known.total, rough, there.size),
            )

    def _run(self, session: Session, case: str, name: str, inputs: Arrays) -> Arrays | None:
        try:
            return _runner(session)(inputs)
        except ProfileError:
            self.outside[name] += 1
            return None
        except RopeExportError as error:
            self._failed(case, name, error)
            return None

    def _same_form(
        self, case: str, name: str, output: str, value: np.ndarray, eager: np.ndarray
    ) -> bool:
        if (value.shape, value.dtype) == (eager.shape, eager.dtype):
            return True
        self._count(case, name, output, "shape or dtype", 1.0)
        self.report.problems.append(
            f"{case} on {name}: {output} is {value.dtype}{value.shape}, "
            f"eager has {eager.dtype}{eager.shape}"
        )
        return False

    def _failed(self, case: str, name: str, error: RopeExportError) -> None:
        self._count(case, name, "every output", "calls that failed", 1.0)
        self.report.problems.append(f"{case} on {name}: {error}")

    def _count(self, case: str, name: str, output: str, metric: str, error: float) -> None:
        row = counted(
            case=case, seed=self.seed, runtime=name, output=output, metric=metric, error=error
        )
        self.report.rows.append(row)


def _runner(session: Session) -> Callable[[Arrays], Arrays]:
    return lambda inputs: {name: to_numpy(x) for name, x in session.run(inputs).items()}


def _judged(trace: Trace, output: str, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Difference from the reference, and the reference, in the part that is judged by error."""
    expected = trace.outputs[output]
    if output == "attention_output":
        return value[trace.attended] - expected[trace.attended], expected[trace.attended]
    new = trace.new(expected)
    return trace.new(value) - new, new


def _changed(after: np.ndarray, before: np.ndarray, starts: np.ndarray) -> float:
    """How many numbers of the entries that were in use have other bits; of as many rows."""
    bits = np.dtype(f"u{before.dtype.itemsize}")
    changed = 0
    for now, then, at in zip(after, before, starts, strict=True):
        kept = np.ascontiguousarray(now[..., :at, :]).view(bits)
        changed += int(np.sum(kept != np.ascontiguousarray(then[..., :at, :]).view(bits)))
    return float(changed)


def _evidence(report: Report, manifest: Manifest, seed: int) -> dict[str, object]:
    worst: dict[str, Row] = {}
    for row in report.rows:
        if row.runtime not in worst or row.used > worst[row.runtime].used:
            worst[row.runtime] = row
    return {
        "status": report.status,
        "weights": report.weights,
        "files": {name: facts["sha256"] for name, facts in manifest.files.items()},
        "seed": seed,
        "rows": len(report.rows),
        "failed": sum(row.status == "failed" for row in report.rows),
        "worst": [row.to_json() for row in worst.values()],
        "skipped": report.skipped,
        "loss": report.loss,
        "numbers": report.numbers,
        "left_out": report.left_out,
        "eager": {"torch": torch.__version__, "device": "cpu", "tf32": False},
    }

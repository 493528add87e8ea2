"""Locates the first wrong tensor of an attention layer, in the cases that failed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx

from rope_export.attention.layer import RotaryAttention
from rope_export.errors import RopeExportError
from rope_export.interface import CachePair
from rope_export.parity.cases import Case
from rope_export.parity.decoder.running import RunLayer
from rope_export.parity.layer.call import LayerExpected
from rope_export.parity.locate.diagnosis import explanations, sentence
from rope_export.parity.locate.eager_layer import Tapped, eager_taps
from rope_export.parity.locate.stage import Seen, Stage, compared, misshapen
from rope_export.parity.locate.stages import ORDER, cache_stage, layer_stages
from rope_export.parity.locate.suspect import Suspect
from rope_export.parity.locate.tapped_model import maker_of, opened, taps_in, with_outputs
from rope_export.parity.metrics import errors
from rope_export.parity.report.located import Located
from rope_export.parity.rows import counted, judged
from rope_export.parity.subject import Call, Failures, Whereabouts

CASES = 3
"""Cases that are run again on each runtime."""

RICH = 12
"""New tokens from which on a case tells apart what could be wrong."""

COST = 2**22
"""Numbers of a case beyond which a cheaper one is run again, if one failed too."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Look:
    """One case on one runtime: what was compared, in order, and the first that is wrong."""

    call: Call
    seen: tuple[Seen, ...]
    first: Seen | None

    @property
    def rank(self) -> int:
        return len(ORDER) if self.first is None else ORDER.index(self.first.stage.key)


class LayerLocator:
    """Runs cases again with every tensor on the way.

    eager: the eager layer. model: the ONNX model with its weights inside. prepared: makes a call
    of a case. limits: whole numbers of the file that could be limits on slots. threads: that a
    call on a runtime may use.
    """

    def __init__(
        self,
        eager: RotaryAttention,
        model: Callable[[], onnx.ModelProto],
        prepared: Callable[[Case], Call],
        limits: Callable[[], frozenset[int]] = frozenset,
        threads: int | None = None,
    ) -> None:
        self.eager, self._read, self.prepared, self._limits = eager, model, prepared, limits
        self.threads = threads

    def locate(self, failures: Failures) -> Whereabouts:
        """The first wrong tensor on each runtime where a case failed."""
        located: list[Located] = []
        notes: list[str] = []
        for runtime, cases in failures.items():
            try:
                located += self._on(runtime, _chosen(cases))
            except Exception as error:  # of any operator or spec, which must not hide the verdict
                known = isinstance(error, RopeExportError)
                what = error if known else f"{type(error).__name__}: {error}"
                notes.append(f"{runtime}: the first wrong tensor was not looked for: {what}")
        return Whereabouts(located=tuple(located), notes=tuple(notes))

    def _on(self, runtime: str, cases: Sequence[Case]) -> Iterator[Located]:
        looks = [self._look(runtime, case) for case in cases]
        looks = [x for x in looks if x.first is not None or not any(y.failed for y in x.seen)]
        if not looks:
            return  # eager alone is wrong, of which it is told
        first = min(looks, key=lambda look: look.rank)
        if first.first is None:
            yield self._nowhere(runtime, first)
            return
        same = _finite([x for x in looks if x.rank == first.rank])
        first = same[0]
        assert first.first is not None
        found = [list(explanations(self._suspect(look))) for look in same]
        common = [x for x in found[0] if all(x in other for other in found)]
        suspect = self._suspect(first)
        yield Located(
            case=first.call.case.name,
            runtime=runtime,
            tensor=first.first.tap.tensor,
            value=first.first.source,
            where=first.first.stage.place(first.first.value, first.call.inputs.get("position_ids")),
            metric=first.first.tap.metric,
            error=first.first.tap.error,
            tolerance=first.first.tap.tolerance,
            diagnosis=sentence(first.first, suspect.maker, common, suspect),
            taps=tuple(seen.tap for seen in first.seen),
        )

    def _nowhere(self, runtime: str, look: _Look) -> Located:
        """Of a case whose tensors are all right when they are outputs as well."""
        last = look.seen[-1].tap
        stands = "" if runtime in ("eager", self._ran.get(runtime)) else (
            f", in {self._ran[runtime]}, which stands in for {runtime}"
        )  # fmt: skip
        return Located(
            case=look.call.case.name,
            runtime=runtime,
            tensor="none",
            value=None,
            where=(),
            metric=last.metric,
            error=last.error,
            tolerance=last.tolerance,
            diagnosis=(
                f"Every tensor of the ONNX model is inside of its tolerance{stands} when it is an "
                f"output as well: what the runtime makes of the graph is wrong, as by fusing "
                f"operators, and not the graph."
            ),
            taps=tuple(seen.tap for seen in look.seen),
        )

    def _suspect(self, look: _Look) -> Suspect:
        expected = look.call.expected
        assert isinstance(expected, LayerExpected)
        assert look.first is not None
        return Suspect(
            layer=expected.layer,
            trace=expected.trace,
            inputs=look.call.inputs,
            first=look.first,
            seen={seen.stage.key: seen for seen in look.seen},
            limits_of_file=tuple(sorted(self._limits())),
            maker=None if look.first.source is None else maker_of(self._model, look.first.source),
        )

    @cached_property
    def _model(self) -> onnx.ModelProto:
        return self._read()

    @cached_property
    def _facts(self) -> Mapping[str, tuple[str, str]]:
        return {tensor: (x.value, x.axes) for tensor, x in taps_in(self._model).items()}

    @cached_property
    def _ran(self) -> dict[str, str]:
        return {}

    @cached_property
    def _runs(self) -> dict[str, RunLayer]:
        return {}

    def _tapped(self, runtime: str, call: Call) -> tuple[Tapped, Mapping[str, np.ndarray]]:
        """The tensors on the way on a runtime, and its outputs."""
        if runtime == "eager":
            return eager_taps(self.eager, call.inputs), call.eager
        if not self._facts:
            raise RopeExportError("the file names none of its tensors; export it again.")
        if runtime not in self._runs:
            model = with_outputs(self._model, (value for value, _ in self._facts.values()))
            self._ran[runtime], self._runs[runtime] = opened(runtime, model, self.threads)
        values = self._runs[runtime](call.inputs)
        return {key: (values[x], axes) for key, (x, axes) in self._facts.items()}, values

    def _look(self, runtime: str, case: Case) -> _Look:
        call = self.prepared(case)
        expected = call.expected
        assert isinstance(expected, LayerExpected)
        eager = eager_taps(self.eager, call.inputs)
        values, outputs = self._tapped(runtime, call)
        seen = []
        for stage in layer_stages(expected.layer, expected.rough, expected.trace):
            if stage.key in values:
                seen.append(self._compare(stage, runtime, values[stage.key], eager))
        for pair in expected.interface.caches:
            if pair.output in outputs:
                seen.append(_cached(pair, call, runtime, outputs[pair.output]))
        seen.sort(key=lambda x: ORDER.index(x.stage.key))
        dtype, eager_itself = self.eager.spec.dtype, runtime == "eager"
        wrong = (x for x in seen if x.failed and (eager_itself or not x.right(dtype)))
        first = next(wrong, None)
        return _Look(call=call, seen=tuple(seen), first=first)

    def _compare(
        self, stage: Stage, runtime: str, given: tuple[np.ndarray, str], eager: Tapped
    ) -> Seen:
        source = None if runtime == "eager" else self._facts[stage.key][0]
        dtype = self.eager.spec.dtype
        true = stage.arranged(*eager[stage.key]) if stage.key in eager else None
        value = stage.arranged(*given)
        if value is None:
            return misshapen(stage, runtime, source)
        return compared(
            stage, dtype, runtime, value, stage.expected if true is None else true, source
        )


def _finite(looks: list[_Look]) -> list[_Look]:
    """Those whose tensor is finite, of which more can be told; all if none is."""
    finite = [x for x in looks if x.first is not None and np.all(np.isfinite(x.first.value))]
    return finite or looks


def _cached(pair: CachePair, call: Call, runtime: str, value: np.ndarray) -> Seen:
    """The cache after the call: the part that was written by its error, the rest bit for bit."""
    output, expected = pair.output, call.expected
    stage = cache_stage(output, expected.outputs[output], expected.starts + expected.sequence)
    source = None if runtime == "eager" else output
    if value.shape != stage.expected.shape:
        return misshapen(stage, runtime, source)
    rows = judged(
        case="",
        seed=0,
        runtime=runtime,
        output=output,
        errors=errors(*expected.difference(output, value)),
        eager_errors=call.eager_errors[output],
        bounds=call.bounds[output],
    )
    changed = expected.changed(output, value, call.inputs)
    if changed is not None:
        rows.append(
            counted(
                case="",
                seed=0,
                runtime=runtime,
                output=output,
                metric="past values changed",
                error=changed,
            )
        )
    return Seen(stage=stage, value=value, source=source, rows=tuple(rows))


def _chosen(cases: Mapping[Case, float]) -> list[Case]:
    """Those to run again: cheap ones with many tokens, and those that failed by most."""

    def cost(case: Case) -> int:
        return (
            case.batch * (case.sequence + 1) * (case.total + case.spare) + case.batch * case.total
        )

    def order(case: Case) -> tuple[bool, bool, float]:
        rich = case.batch * case.sequence >= RICH
        return cost(case) > COST, not rich, float(cost(case))

    ranked = sorted(cases, key=order)
    worst = sorted((x for x in ranked if cost(x) <= COST), key=lambda x: -cases[x])
    return list(dict.fromkeys([*ranked[:1], *worst[:1], *ranked[1:]]))[:CASES]

"""The whole model: from the first token to the last logit, with caches of the artifact's own."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from rope_export.errors import ProfileError, RopeExportError
from rope_export.interface import Interface, TensorType
from rope_export.parity.bounds import TIMES
from rope_export.parity.decoder.calls import Arrays, Kept, calls_of, changed_bits
from rope_export.parity.decoder.passage import Passage, last_new
from rope_export.parity.decoder.verdicts import Floors, LogitTolerance, Verdicts
from rope_export.parity.rows import CALLS_FAILED
from rope_export.parity.subject import Record, Side
from rope_export.runtimes import all_runtimes


class Whole:
    """The rows of the logits, and of what a call may not change.

    last: whether the logits are those of the last new token alone. judged: whether logits are
    judged; without, only what a call may not change. against: names among the sessions, with which
    every other one is compared too. record: is given every call. tolerance: the largest of one
    logit so far. doubtful: tokens that are not judged.
    outside: texts that have a call outside of the profiles of an engine, by the runtime.
    """

    def __init__(
        self,
        interface: Interface,
        sessions: Mapping[str, Side],
        verdicts: Verdicts,
        *,
        last: bool,
        judged: bool,
        against: Sequence[str] = (),
        record: Record | None = None,
    ) -> None:
        self.interface, self.sessions, self.verdicts = interface, sessions, verdicts
        self.last, self.judged, self.against = last, judged, against
        self.record = record
        self.tolerance, self.doubtful = LogitTolerance(), 0
        self.outside: Counter[str] = Counter()
        self.floors = Floors(verdicts.dtype)
        self._margins: dict[tuple[str, int], np.ndarray] = {}

    def note_margins(self, passage: Passage, call: int, layer: int, close: np.ndarray) -> None:
        """Of a layer, by how many deviations each token's choice of experts is safe. End to end the
        errors of all layers before it count too, as independent ones."""
        key, margins = (passage.text.name, call), close / np.sqrt(layer + 1)
        self._margins[key] = np.minimum(self._margins.get(key, np.inf), margins)

    def judge(self, passage: Passage) -> None:
        """Run a text on every session, and judge its logits."""
        exact, eager = (passage.logits(x, self.last) for x in ("exact", "eager"))
        results: list[Arrays] = [{} for _ in exact]
        kept = [Kept() for _ in exact]
        for runtime, session in self.sessions.items():
            try:
                calls = calls_of(session, passage, self.interface)
                for call, logits in enumerate(exact):
                    inputs, outputs = calls.run(call)
                    if self.record is not None and runtime in all_runtimes():
                        kept[call].add(runtime, session, inputs, outputs)
                    outputs = self._as_ours(outputs, calls.interface, passage.new(call))
                    form = calls.interface, inputs, outputs, logits.shape
                    if outputs and self._well_formed(passage, call, runtime, *form):
                        results[call][runtime] = outputs["logits"].astype(np.float64)
            except ProfileError:
                self.outside[runtime] += 1
            except RopeExportError as error:
                self.failed(passage.text.name, runtime, "every output", error)
        certain = np.ones(passage.text.rows, dtype=bool)
        for call in range(len(exact)) if self.judged else ():
            sure = self._sure(passage, call, certain)
            tokens = last_new(sure, passage.new(call)) if self.last else sure
            positions = passage.taken(passage.positions, call)
            tolerance = self.verdicts.logits(
                case=passage.case(call),
                exact=exact[call],
                eager=eager[call],
                floor=self.floors.of((passage.text.name, call), exact[call][tokens].size),
                judged_tokens=tokens,
                positions=last_new(positions, passage.new(call)) if self.last else positions,
                runtimes=results[call],
                against=self.against,
            )
            self.tolerance = self.tolerance.or_more(tolerance)
        for call, one in enumerate(kept if self.record is not None else ()):
            if self.record is not None and one.answers:
                case = passage.case(call)
                allowed = self.verdicts.tolerances.get(case, {})
                self.record(case, one.inputs, one.answers, allowed)

    def _as_ours(self, outputs: Arrays, interface: Interface, new: np.ndarray) -> Arrays:
        """The outputs with the logits of the last new tokens alone, where ours are those, and the
        other side's are of all."""
        every = interface.output("logits").shape[1] != 1
        if not (outputs and self.last and every):
            return outputs
        return {**outputs, "logits": last_new(outputs["logits"], new)}

    def failed(self, case: str, runtime: str, output: str, error: RopeExportError) -> None:
        """A runtime did not do what it was asked for."""
        self.verdicts.count(
            case=case, runtime=runtime, output=output, metric=CALLS_FAILED, error=1.0
        )
        self.verdicts.report.problems.append(f"{case} on {runtime}: {error}")

    def _sure(self, passage: Passage, call: int, certain: np.ndarray) -> np.ndarray:
        """(rows, sequence): the new tokens before the first whose choice of experts rounding may
        change. certain (rows): whether no call before had one; changed in place."""
        new = passage.new(call)
        margins = self._margins.get((passage.text.name, call))
        if margins is None:
            return new
        safe = np.logical_and.accumulate((margins >= TIMES) | ~new, axis=1) & certain[:, None]
        self.doubtful += int(np.sum(new & ~safe))
        certain &= safe[:, -1]
        sure: np.ndarray = safe & new
        return sure

    def _well_formed(
        self,
        passage: Passage,
        call: int,
        runtime: str,
        interface: Interface,
        inputs: Arrays,
        outputs: Arrays,
        logits: tuple[int, ...],
    ) -> bool:
        """Whether every output has its name, dtype and shape, and the past its bits."""
        case = passage.case(call)
        starts, _ = passage.bounds(call)
        before = {x.output: inputs[x.input] for x in interface.caches}
        sound = True
        for tensor in interface.outputs:
            past = before.get(tensor.name)
            shape = logits if past is None else _grown(past, passage.new(call), interface.cache)
            wrong = _another_form(tensor, shape, outputs.get(tensor.name))
            if wrong is not None:
                self.verdicts.count(
                    case=case,
                    runtime=runtime,
                    output=tensor.name,
                    metric="shape or dtype",
                    error=1.0,
                )
                self.verdicts.report.problems.append(f"{case} on {runtime}: {wrong}")
                sound = False
            elif past is not None and starts.any():
                self._past(case, runtime, tensor.name, past, outputs[tensor.name], starts)
        return sound

    def _past(
        self,
        case: str,
        runtime: str,
        output: str,
        before: np.ndarray,
        after: np.ndarray,
        starts: np.ndarray,
    ) -> None:
        """What was cached before the call must have the same bits."""
        changed = changed_bits(before, after, starts)
        same = self.verdicts.count(
            case=case, runtime=runtime, output=output, metric="past values changed", error=changed
        )
        if not same:
            what = f"{output}, {case}: {changed:.0f} values of the past were changed"
            self.verdicts.outside(runtime, int(output.split(".")[1]), what)


def _grown(past: np.ndarray, new: np.ndarray, cache: str) -> tuple[int, ...]:
    """The shape of a cache after a call. new: its tokens."""
    more = new.shape[1] if cache == "growing" else 0
    return (*past.shape[:2], past.shape[2] + more, *past.shape[3:])


def _another_form(
    tensor: TensorType, shape: tuple[int, ...], value: np.ndarray | None
) -> str | None:
    """What is wrong with the form of an output, in a sentence, or nothing."""
    if value is None:
        return f"{tensor.name} is missing."
    if (value.shape, str(value.dtype)) == (shape, tensor.dtype):
        return None
    return f"{tensor.name} is {value.dtype}{value.shape}, not {tensor.dtype}{shape}."

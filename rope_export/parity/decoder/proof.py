"""A decoder's proof, streamed: every text goes through transformers' model one layer after the
other, and each layer of the artifact is looked at while that one's weights are at hand."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rope_export.errors import InputError, RopeExportError
from rope_export.interface import Interface
from rope_export.parity.bounds import TIMES
from rope_export.parity.decoder.blocks import Block, block_of
from rope_export.parity.decoder.calls import Calls, changed_bits, layer_inputs, new_slots
from rope_export.parity.decoder.cut import Cutter
from rope_export.parity.decoder.greedy import CASE, Greedy
from rope_export.parity.decoder.passage import Passage, last_new
from rope_export.parity.decoder.theirs import Theirs
from rope_export.parity.decoder.verdicts import Floors, Verdicts
from rope_export.parity.decoder.walk import Walk
from rope_export.parity.report.result import Report
from rope_export.parity.rows import CALLS_FAILED
from rope_export.parity.subject import Progress
from rope_export.sessions import Session

Arrays = dict[str, np.ndarray]
RunLayer = Callable[[Arrays], Arrays]


@dataclass(frozen=True, kw_only=True, eq=False)
class Decoder:
    """The artifact as it is judged. cutter: of its layers. layer_sessions: opens a cut layer, by
    the runtime. logits: "last" or "all"."""

    interface: Interface
    dtype: str
    vocabulary: int
    layers: int
    logits: str
    sessions: Mapping[str, Session]
    cutter: Cutter | None
    layer_sessions: Mapping[str, Callable[[bytes], RunLayer]]


class Proof:
    """The rows of a decoder."""

    def __init__(
        self,
        decoder: Decoder,
        theirs: Theirs,
        passages: Sequence[Passage],
        report: Report,
        seed: int,
        greedy: Greedy,
    ) -> None:
        self.decoder, self.theirs, self.passages = decoder, theirs, passages
        self.verdicts = Verdicts(report, decoder.dtype, seed)
        self.report, self.floors = report, Floors(decoder.dtype)
        self.seed, self.greedy = seed, greedy
        self.close: dict[tuple[str, int], np.ndarray] = {}
        self.doubtful = 0
        self.tolerance = 0.0
        self.unknown: set[str] = set()

    def run(self, progress: Progress) -> None:
        """Judge every layer, then the logits."""
        generator = self._generate(progress)
        every = [walk for x in self.passages for walk in x.walks] + self.greedy.walks
        try:
            for walk in every:
                walk.start()
            calls = max(len(x.text.counts) for x in self.passages)
            layers = self.decoder.layers
            for call in range(calls):
                reading = [x for x in self.passages if call < len(x.text.counts)]
                for layer in range(layers):
                    progress(f"call {call + 1}, layer {layer}", (call + layer / layers) / calls)
                    self._layer(reading, call, layer)
                    self.theirs.widened.forget()
        finally:
            for walk in every:
                walk.stop()
        progress("logits", 1.0)
        for passage in self.passages:
            if not passage.text.massive:
                self._logits(passage)
        if generator is not None:
            self.greedy.judge(self.report, generator, self.seed, self.tolerance)
        self._conclude()

    def _generate(self, progress: Progress) -> str | None:
        """The runtime that has generated the greedy texts, if it could."""
        progress("greedy text", 0.0)
        name, session = next(iter(self.decoder.sessions.items()))
        try:
            self.greedy.generate(session)
        except RopeExportError as error:
            self.verdicts.count(
                case=CASE, runtime=name, output="text", metric=CALLS_FAILED, error=1.0
            )
            self.report.problems.append(f"greedy text on {name}: {error}")
            return None
        return name

    def _layer(self, passages: Sequence[Passage], call: int, layer: int) -> None:
        sessions = self._cut(layer)
        for passage in passages:
            block = block_of(passage, layer, self.decoder.dtype)
            self._judge(passage, call, layer, block, sessions)
            for walk in passage.walks:
                self._go_on(walk, layer)
        for walk in self.greedy.walks if call == 0 else ():
            self._go_on(walk, layer)

    def _go_on(self, walk: Walk, layer: int) -> None:
        """Run the layer for one forward."""
        pending = walk.call
        if pending is None or pending.layer != layer:
            raise InputError(
                f"transformers does not call layer {layer} when it is due; this model cannot be "
                f"judged layer by layer."
            )
        with torch.no_grad(), walk.mode():
            output = self.theirs.layers[layer](*pending.args, **pending.kwargs)
        walk.go_on(output)

    def _cut(self, layer: int) -> dict[str, Any]:
        """A session on this layer of the artifact, for each runtime that has one."""
        cutter = self.decoder.cutter
        if cutter is None or not self.decoder.layer_sessions:
            return {}
        present = [x.output for x in self.decoder.interface.caches if x.output.split(".")[1] == str(layer)]
        try:
            cut = cutter.cut(layer, present)
        except InputError as error:
            self._left_out(f"layers.{layer} was not judged alone: {error}.")
            return {}
        return {name: (cut, open_(cut.model)) for name, open_ in self.decoder.layer_sessions.items()}

    def _judge(
        self, passage: Passage, call: int, layer: int, block: Block, sessions: Mapping[str, Any]
    ) -> None:
        case = _case(passage, call)
        self.unknown |= block.unknown
        new = passage.new(call)
        sure = new.copy()
        if block.close is not None:
            sure &= block.close >= TIMES
            margin = block.close / np.sqrt(layer + 1)
            key = (passage.text.name, call)
            self.close[key] = np.minimum(self.close.get(key, np.inf), margin)
        self.floors.add((passage.text.name, call), block.output, new)
        values: dict[str, dict[str, np.ndarray]] = {}
        for runtime, (cut, run) in sessions.items():
            inputs = layer_inputs(cut, block, passage, self.decoder.interface, call, layer)
            try:
                values[runtime] = run(inputs)
            except RopeExportError as error:
                self.verdicts.count(
                    case=case, runtime=runtime, output=f"layers.{layer}",
                    metric=CALLS_FAILED, error=1.0,
                )  # fmt: skip
                self.verdicts.outside(runtime, layer, str(error))
        names = next((cut.outputs for cut, _ in sessions.values()), (f"layers.{layer + 1}/hidden_states", *(f"present.{layer}.{x}" for x in block.cache)))
        self.verdicts.layer(
            layer=layer, case=case, output=names[0], part=block.output, judged_tokens=sure,
            runtimes={x: y[names[0]].astype(np.float64) for x, y in values.items()},
        )  # fmt: skip
        written = np.ones_like(new)
        starts, ends = passage.bounds(call)
        written &= np.arange(new.shape[1]) < (ends - starts)[:, None]
        for name in names[1:]:
            part = block.cache.get(name.rpartition(".")[2])
            if part is None:
                continue
            self.verdicts.layer(
                layer=layer, case=case, output=name, part=part, judged_tokens=written,
                runtimes={x: new_slots(y[name], passage, call) for x, y in values.items()},
            )  # fmt: skip

    def _logits(self, passage: Passage) -> None:
        """The artifact's own calls, from the first token to the last logit."""
        last = self.decoder.logits == "last"
        exact, eager = (passage.logits(x, last) for x in ("exact", "eager"))
        results: list[dict[str, np.ndarray]] = [{} for _ in exact]
        for runtime, session in self.decoder.sessions.items():
            try:
                calls = Calls(session, passage)
                for call in range(len(exact)):
                    inputs, outputs = calls.run(call)
                    if self._well_formed(passage, call, runtime, inputs, outputs, exact[call].shape):
                        results[call][runtime] = outputs["logits"].astype(np.float64)
            except RopeExportError as error:
                self.verdicts.count(
                    case=passage.text.name, runtime=runtime, output="every output",
                    metric=CALLS_FAILED, error=1.0,
                )  # fmt: skip
                self.report.problems.append(f"{passage.text.name} on {runtime}: {error}")
        certain = np.ones(passage.text.rows, dtype=bool)
        for call in range(len(exact)):
            new = passage.new(call)
            sure = self._sure(passage, call, certain)
            tokens = last_new(sure, new) if last else sure & new
            tolerance = self.verdicts.logits(
                case=_case(passage, call),
                exact=exact[call],
                eager=eager[call],
                floor=self.floors.of((passage.text.name, call), exact[call][tokens].size),
                judged_tokens=tokens,
                runtimes=results[call],
            )
            self.tolerance = max(self.tolerance, tolerance)

    def _sure(self, passage: Passage, call: int, certain: np.ndarray) -> np.ndarray:
        """(rows, sequence): the tokens before the first whose choice of experts rounding may
        change. certain (rows): whether there was none in an earlier call, in place."""
        new = passage.new(call)
        close = self.close.get((passage.text.name, call))
        if close is None:
            return new & certain[:, None]
        safe = np.logical_and.accumulate((close >= TIMES) | ~new, axis=1) & certain[:, None]
        self.doubtful += int(np.sum(new & ~safe))
        certain &= safe[:, -1]
        return safe

    def _well_formed(
        self,
        passage: Passage,
        call: int,
        runtime: str,
        inputs: Arrays,
        outputs: Arrays,
        logits: tuple[int, ...],
    ) -> bool:
        """Whether every output has its name, dtype and shape, and the past its bits."""
        case, interface = _case(passage, call), self.decoder.interface
        starts, _ = passage.bounds(call)
        sound = True
        for tensor in interface.outputs:
            value = outputs.get(tensor.name)
            shape = logits
            pair = next((x for x in interface.caches if x.output == tensor.name), None)
            if pair is not None:
                before = inputs[pair.input].shape
                grown = 0 if interface.cache == "fixed" else passage.new(call).shape[1]
                shape = (*before[:2], before[2] + grown, before[3])
            wrong = value is None or (value.shape, str(value.dtype)) != (shape, tensor.dtype)
            if wrong:
                form = "missing" if value is None else f"{value.dtype}{value.shape}"
                self.report.problems.append(
                    f"{case} on {runtime}: {tensor.name} is {form}, not {tensor.dtype}{shape}."
                )
                self.verdicts.count(case=case, runtime=runtime, output=tensor.name,
                                    metric="shape or dtype", error=1.0)  # fmt: skip
                sound = False
            elif pair is not None and value is not None and starts.any():
                changed = changed_bits(inputs[pair.input], value, starts)
                layer = int(tensor.name.split(".")[1])
                if not self.verdicts.count(case=case, runtime=runtime, output=tensor.name,
                                           metric="past values changed", error=changed):  # fmt: skip
                    self.verdicts.outside(runtime, layer, f"{tensor.name}, {case}: {changed:.0f} "
                                          f"values of the past were changed")  # fmt: skip
        return sound

    def _conclude(self) -> None:
        self.verdicts.finish()
        if self.doubtful:
            self._left_out(
                f"{self.doubtful} tokens were not judged end to end: rounding may change the "
                f"choice of their experts, or of a token's before them."
            )
        if self.unknown:
            names = ", ".join(sorted(self.unknown))
            self._left_out(f"eager's own error has no ceiling: no rule for {names}.")

    def _left_out(self, line: str) -> None:
        if line not in self.report.left_out:
            self.report.left_out.append(line)


def _case(passage: Passage, call: int) -> str:
    several = len(passage.text.counts) > 1
    return f"{passage.text.name}, call {call + 1}" if several else passage.text.name

"""A decoder's proof, streamed: every text goes through transformers' model one layer after the
other, and each layer of the artifact is judged while that one's weights are at hand."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rope_export.errors import InputError, ProfileError, RopeExportError
from rope_export.interface import Interface
from rope_export.parity.bounds import TIMES
from rope_export.parity.decoder.blocks import Block, block_of
from rope_export.parity.decoder.calls import Arrays, Left, layer_inputs, new_slots
from rope_export.parity.decoder.cut import Cut, Cutter
from rope_export.parity.decoder.greedy import Greedy, NoText
from rope_export.parity.decoder.passage import Passage
from rope_export.parity.decoder.running import RunLayer
from rope_export.parity.decoder.theirs import Theirs
from rope_export.parity.decoder.verdicts import Verdicts
from rope_export.parity.decoder.walk import Walk
from rope_export.parity.decoder.whole import Whole
from rope_export.parity.report.located import Located
from rope_export.parity.report.result import Report
from rope_export.parity.rows import TEXT
from rope_export.parity.subject import Progress, Record, Side
from rope_export.runtimes import all_runtimes
from rope_export.sessions import Session

Locate = Callable[[str, Passage, int, int, np.ndarray], None]
"""Takes the runtime, the text, the call, the layer, and which of the new tokens are judged."""

LocateOuter = Callable[[str, Sequence[Left]], Located | None]
"""Takes the runtime, and what leaves the last layer in calls, those first that show a fault."""

KEPT = 2**30
"""Bytes of the largest model whose layers are all open at once."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Decoder:
    """The artifact as it is judged.

    last: whether its logits are those of the last new token alone. cutter: of its layers, if they
    can be cut out. layer_sessions: opens a cut layer, by the runtime. locate: looks for the first
    wrong tensor of a layer that is outside of its tolerance; locate_outer: before the first layer
    and, unless a layer is wrong, after the last. against,
    record: as for `Whole`.
    """

    interface: Interface
    dtype: str
    layers: int
    last: bool
    sessions: Mapping[str, Side]
    cutter: Cutter | None
    layer_sessions: Mapping[str, Callable[[bytes], RunLayer]]
    locate: Locate | None = None
    locate_outer: LocateOuter | None = None
    against: Sequence[str] = ()
    record: Record | None = None

    def present(self, layer: int) -> list[str]:
        """The outputs that are the cache of one layer."""
        return [x.output for x in self.interface.caches if x.output.split(".")[1] == str(layer)]


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """One layer of the artifact, cut out, and what runs it by the runtime."""

    index: int
    cut: Cut
    runs: Mapping[str, RunLayer]


class Proof:
    """The rows of a decoder, written into a report.

    passages: the texts. greedy: what the first runtime generates.
    """

    def __init__(
        self,
        decoder: Decoder,
        theirs: Theirs,
        passages: Sequence[Passage],
        greedy: Greedy,
        verdicts: Verdicts,
    ) -> None:
        self.decoder, self.theirs, self.passages = decoder, theirs, passages
        self.greedy, self.verdicts = greedy, verdicts
        self.whole = Whole(
            decoder.interface,
            decoder.sessions,
            verdicts,
            last=decoder.last,
            judged=not theirs.int8_blocks,
            against=decoder.against,
            record=decoder.record,
        )
        self.unknown: set[str] = set()
        self._kept: dict[int, Layer | None] = {}
        self._left: list[Left] = []

    @property
    def report(self) -> Report:
        return self.verdicts.report

    def run(self, progress: Progress) -> None:
        """Judge every layer, then the logits, then the text."""
        generator = self._generate(progress)
        walks = [walk for passage in self.passages for walk in passage.walks] + self.greedy.walks
        try:
            for walk in walks:
                walk.start()
            self._layers(progress)
        finally:
            for walk in walks:
                walk.stop()
        progress("logits", 1.0)
        for passage in self.passages:
            if not passage.text.alone:
                self.whole.judge(passage)
        if generator is not None:
            verdicts, tolerance = self.verdicts, self.whole.tolerance
            self.greedy.judge(self.report, generator, verdicts.seed, tolerance, verdicts.dtype)
        self._look_around(progress)
        self._conclude()

    def _generate(self, progress: Progress) -> str | None:
        """The first runtime that can generate the greedy texts, if it did."""
        if not self.whole.judged or isinstance(self.greedy, NoText):
            return None
        progress("greedy text", 0.0)
        for name, session in self.decoder.sessions.items():
            if not isinstance(session, Session):
                continue
            try:
                self.greedy.generate(session)
            except ProfileError:
                continue
            except RopeExportError as error:
                self.whole.failed(self.greedy.case, name, TEXT, error)
                return None
            return name
        self._leave_out("no text was generated: it lies outside of the profiles.")
        return None

    def _layers(self, progress: Progress) -> None:
        calls = max(len(passage.text.counts) for passage in self.passages)
        for call in range(calls):
            passages = [x for x in self.passages if call < len(x.text.counts)]
            for index in range(self.decoder.layers):
                done = (call + index / self.decoder.layers) / calls
                progress(f"call {call + 1}, layer {index}", done)
                layer = self._layer(index)
                for passage in passages:
                    self._judge(passage, call, index, layer)
                    for walk in passage.walks:
                        self._go_on(walk, index)
                for walk in self.greedy.walks if call == 0 else ():
                    self._go_on(walk, index)
                self.theirs.widened.forget()

    def _layer(self, index: int) -> Layer | None:
        """The layer of the artifact, if it can be judged alone; of small models it is kept from one
        call to the next."""
        cutter = self.decoder.cutter
        if cutter is None or cutter.size > KEPT:
            return self._cut(index)
        if index not in self._kept:
            self._kept[index] = self._cut(index)
        return self._kept[index]

    def _cut(self, index: int) -> Layer | None:
        decoder = self.decoder
        if decoder.cutter is None:
            return None
        try:
            cut = decoder.cutter.cut(index, decoder.present(index))
        except InputError as error:
            self._leave_out(f"layers.{index} was not judged alone: {error}.")
            return None
        runs = {}
        for runtime, opened in decoder.layer_sessions.items():
            try:
                runs[runtime] = opened(cut.model)
            except RopeExportError as error:
                self._leave_out(f"layers.{index} was not judged alone on {runtime}: {error}")
        return Layer(index=index, cut=cut, runs=runs)

    def _go_on(self, walk: Walk, index: int) -> None:
        """Run transformers' own layer for one forward."""
        call = walk.call
        if call is None or call.layer != index:
            raise InputError(
                f"transformers does not call layer {index} when it is due: this model cannot be "
                f"judged layer by layer."
            )
        with torch.no_grad(), walk.mode():
            output = self.theirs.layers[index](*call.args, **call.kwargs)
        walk.go_on(output)

    def _judge(self, passage: Passage, call: int, index: int, layer: Layer | None) -> None:
        """One layer on one text: what leaves it, and what it caches."""
        block = block_of(passage, index, self.decoder.dtype)
        self.unknown |= block.unknown
        new = passage.new(call)
        sure = new if block.close is None else new & (block.close >= TIMES)
        if block.close is not None:
            self.whole.note_margins(passage, call, index, block.close)
        self.whole.floors.add((passage.text.name, call), block.output, new)
        values, known = self._run(passage, call, block, layer), dict(self.verdicts.first)
        for output in self.decoder.present(index):
            part = block.cache.get(output.rpartition(".")[2])
            if part is not None:
                self.verdicts.layer(
                    layer=index,
                    case=passage.case(call),
                    output=output,
                    part=part,
                    judged_tokens=passage.written(call),
                    positions=passage.taken(passage.positions, call),
                    runtimes={
                        name: new_slots(x[output], passage, call) for name, x in values.items()
                    },
                )
        self.verdicts.layer(
            layer=index,
            case=passage.case(call),
            output=f"layers.{index + 1}/hidden_states",
            part=block.output,
            judged_tokens=sure,
            positions=passage.taken(passage.positions, call),
            runtimes={name: x[layer.cut.outputs[0]] for name, x in values.items() if layer},
        )
        if index == self.decoder.layers - 1 and not passage.text.alone:
            left = Left(passage=passage, call=call, hidden_states=block.output.exact)
            self._left.append(left)
        for runtime, first in self.verdicts.first.items():
            if self.decoder.locate is not None and known.get(runtime) != first:
                self.decoder.locate(runtime, passage, call, index, sure)

    def _run(
        self, passage: Passage, call: int, block: Block, layer: Layer | None
    ) -> dict[str, Arrays]:
        """What each runtime makes of the layer, those left out that fail."""
        if layer is None:
            return {}
        interface, values = self.decoder.interface, {}
        inputs = layer_inputs(layer.cut, block, passage, interface, call, layer.index)
        for runtime, run in layer.runs.items():
            try:
                values[runtime] = _formed(layer, run(inputs), block, passage, call)
            except RopeExportError as error:
                self.whole.failed(passage.case(call), runtime, f"layers.{layer.index}", error)
                self.verdicts.outside(runtime, layer.index, str(error))
        return values

    def _look_around(self, progress: Progress) -> None:
        """Look for what is wrong beside the layers, on each runtime that a row tells to be wrong,
        or that runs a file whose weights are."""
        failed = [row for row in self.report.rows if row.status == "failed"]
        everywhere = any(row.runtime == "file" for row in failed)
        own = [x for x in self.decoder.sessions if x in all_runtimes()]  # not another side's
        for runtime in own:
            cases = {row.case for row in failed if row.runtime == runtime}
            if self.decoder.locate_outer is None or not (cases or everywhere):
                continue
            progress(f"what is wrong on {runtime}", 1.0)
            calls = sorted(self._left, key=lambda x: x.passage.case(x.call) not in cases)
            located = self.decoder.locate_outer(runtime, calls)
            if located is not None:
                self.verdicts.outer[runtime] = located

    def _conclude(self) -> None:
        self.verdicts.finish()
        if not self.whole.judged:
            self._leave_out(
                "logits and text were not judged: activations are rounded to int8, for which each "
                "layer alone has bounds."
            )
        if self.whole.doubtful:
            self._leave_out(
                f"{self.whole.doubtful} tokens were not judged end to end: rounding may change "
                f"their experts, or those of a token before them."
            )
        for runtime, count in self.whole.outside.items():
            self._leave_out(f"texts outside of the profiles of {runtime}: {count}.")
        if self.unknown:
            names = ", ".join(sorted(self.unknown))
            self._leave_out(f"eager's own error has no ceiling: no rule for {names}.")

    def _leave_out(self, line: str) -> None:
        if line not in self.report.left_out:
            self.report.left_out.append(line)


def _formed(layer: Layer, outputs: Arrays, block: Block, passage: Passage, call: int) -> Arrays:
    """A layer's outputs, which have the form that they are compared in.

    Raises: RopeExportError for one that has another.
    """
    hidden, *present = layer.cut.outputs
    shapes = {hidden: block.output.exact.shape}
    end = int(passage.bounds(call)[1].max())
    for output in present:
        part = block.cache.get(output.rpartition(".")[2])
        if part is not None:
            rows, _, heads, width = part.exact.shape
            slots = max((end, *outputs[output].shape[2:3]))  # there may be free ones
            shapes[output] = rows, heads, slots, width
    for output, shape in shapes.items():
        value = outputs[output]
        if value.shape != shape:
            raise RopeExportError(f"{output} is {value.dtype}{value.shape}, not {shape}")
    return outputs

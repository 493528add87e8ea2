"""Locates the first wrong tensor of a decoder: in the first layer that is outside of its tolerance,
on the text that shows it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx
import torch

from rope_export.attention.layer import RotaryAttention
from rope_export.decoder.two_forms import GENERAL, PLAIN
from rope_export.errors import InputError, RopeExportError
from rope_export.exporter.taps import TapFacts
from rope_export.interface import Interface
from rope_export.parity.bounds import TIMES
from rope_export.parity.decoder.blocks import Block, block_of
from rope_export.parity.decoder.calls import layer_inputs, numbers
from rope_export.parity.decoder.cut import Cutter
from rope_export.parity.decoder.passage import Passage
from rope_export.parity.decoder.theirs import Theirs
from rope_export.parity.layer.deviations import ceiling
from rope_export.parity.layer.inv_freq import frequencies
from rope_export.parity.layer.reference import ReferenceLayer
from rope_export.parity.layer.trace import Trace
from rope_export.parity.locate.diagnosis import explanations, plain_explanations, sentence
from rope_export.parity.locate.eager_layer import eager_taps
from rope_export.parity.locate.forms import in_form
from rope_export.parity.locate.inside import attention_inputs, cropped
from rope_export.parity.locate.modules import ModuleValues, compared_module, modules_of
from rope_export.parity.locate.stage import Seen, Stage, compared
from rope_export.parity.locate.stages import ORDER, cache_stage, layer_stages
from rope_export.parity.locate.suspect import Suspect
from rope_export.parity.locate.tapped_model import maker_of, opened, taps_in
from rope_export.parity.locate.watch import Watched, watched
from rope_export.parity.report.located import Located
from rope_export.spec import AttentionSpec

Arrays = Mapping[str, np.ndarray]
Weights = Callable[[int], Mapping[str, torch.Tensor]]
"""The weights of one layer's attention as they should be deployed, by our names."""

NOTHING = "none"
"""In the place of a tensor where each of them is right."""

ONLY_PLAIN = "Only the plain form of attention is wrong, which calls without padding take."

ENTERS = "hidden_states"
"""What enters the attention, as `decoder.body` has it."""


class DecoderLocator:
    """Runs layers again with every tensor on the way.

    cutter: of the artifact's layers. weights: see `Weights`. threads: that a call on a runtime may
    use. located: by the runtime what was found, with the layer.
    """

    def __init__(
        self,
        theirs: Theirs,
        cutter: Cutter,
        interface: Interface,
        specs: Mapping[int, AttentionSpec],
        weights: Weights,
        dtype: str,
        threads: int | None = None,
    ) -> None:
        self.theirs, self.cutter, self.interface = theirs, cutter, interface
        self.specs, self.weights, self.dtype, self.threads = specs, weights, dtype, threads
        self.located: dict[str, tuple[int, Located]] = {}
        self.notes: list[str] = []
        self._forms: dict[str, Cutter | None] = {}

    def look(
        self, runtime: str, passage: Passage, call: int, layer: int, judged: np.ndarray
    ) -> None:
        """One layer in one call of a text, in which it is outside of its tolerance. judged: which
        new tokens are looked at, (rows, sequence)."""
        known = self.located.get(runtime)
        if known is not None and known[0] <= layer:
            return
        try:
            found = self._look(runtime, passage, call, layer, judged)
        except Exception as error:  # of anybody's module, which must not hide the verdict
            what = (
                error if isinstance(error, RopeExportError) else f"{type(error).__name__}: {error}"
            )
            self.notes.append(f"{runtime}: the first wrong tensor was not looked for: {what}")
            return
        if found is not None:
            self.located[runtime] = layer, found

    def _look(
        self, runtime: str, passage: Passage, call: int, layer: int, judged: np.ndarray
    ) -> Located | None:
        cutter = self.form(GENERAL) or self.cutter
        found = _Look(self, cutter, runtime, passage, call, layer, judged).located()
        plain = self.form(PLAIN)
        if found is None or found.tensor != NOTHING or plain is None:
            return found
        other = _Look(self, plain, runtime, passage, call, layer, judged).located()
        return other if other is None or other.tensor == NOTHING else replace(
            other, diagnosis=f"{ONLY_PLAIN} {other.diagnosis}"
        )  # fmt: skip

    def form(self, form: str) -> Cutter | None:
        """The model in one form of its attention, if it has two."""
        if form not in self._forms:
            self._forms[form] = in_form(self.cutter, form)
        return self._forms[form]


class _Look:
    """One layer of one call on one runtime. cutter: of the model in one form."""

    def __init__(
        self,
        locator: DecoderLocator,
        cutter: Cutter,
        runtime: str,
        passage: Passage,
        call: int,
        layer: int,
        judged: np.ndarray,
    ) -> None:
        self.locator, self.runtime, self.passage = locator, runtime, passage
        self.cutter = cutter
        self.call, self.layer, self.judged = call, layer, judged
        self.spec = locator.specs.get(layer)
        self.dtype = locator.dtype
        self.prefix = f"layers.{layer}."
        taps = taps_in(cutter.model)
        self.taps = {
            name.removeprefix(self.prefix): facts
            for name, facts in taps.items()
            if name.startswith(self.prefix)
        }
        self.present = [
            x.output for x in locator.interface.caches if x.output.split(".")[1] == str(layer)
        ]
        entering = [x for x in self.taps if x.endswith(f".{ENTERS}")]
        self.attention = entering[0].removesuffix(f".{ENTERS}") if entering else None

    def located(self) -> Located | None:
        """Nothing where eager alone is wrong, of which it is told.

        Raises: RopeExportError if the layer cannot be run.
        """
        with watched(modules_of(self.locator.theirs.layers[self.layer])) as seen:
            block = block_of(self.passage, self.layer, self.dtype)
        inputs, values = self._run(block)
        around = self._around(seen, block, values)
        first = next(filter(self._wrong, around), None)
        inner: list[Seen] = []
        suspect = None
        if self._may_be_inside(first):
            inner, suspect = self._inside(inputs, values)
        if suspect is not None:
            first = suspect.first
        every = _in_order(around, inner, self.attention)
        if first is None and any(x.failed for x in every):
            return None
        return self._told(first, suspect, every)

    def _wrong(self, seen: Seen) -> bool:
        """Whether a tensor is outside of its tolerance, and not for eager's part alone."""
        return seen.failed and (self.runtime == "eager" or not seen.right(self.dtype))

    def _run(self, block: Block) -> tuple[Arrays, Arrays]:
        """The inputs of the cut layer, and its values by the names of taps; none in eager."""
        cutter, passage = self.cutter, self.passage
        more = dict.fromkeys(facts.value for facts in self.taps.values())
        try:
            cut = cutter.cut(self.layer, self.present, more)
        except InputError as error:
            raise RopeExportError(f"layers.{self.layer} cannot be run alone: {error}") from error
        interface, text = self.locator.interface, passage.text
        own = layer_inputs(cut, block, passage, interface, self.call, self.layer)
        # A form of the model may take less than another.
        inputs = {**numbers(interface, passage, self.call, text.capacity), **own}
        if self.runtime == "eager":
            return inputs, {}
        _, run = opened(self.runtime, onnx.load_from_string(cut.model), self.locator.threads)
        outputs = run(own)
        values = {name: outputs[x.value] for name, x in self.taps.items() if x.value in outputs}
        return inputs, values | {x: outputs[x] for x in cut.outputs}

    def _around(self, seen: Watched, block: Block, values: Arrays) -> list[Seen]:
        """The modules that both have, in the order in which they run; the layer's output last."""
        compared_ones = []
        for name in seen.exact:
            exact, eager, squares, rough = (
                seen.part(kind, name, self.passage)
                for kind in ("exact", "eager", "squares", "rough")
            )
            if exact is None or eager is None or exact.shape[:2] != self.judged.shape:
                continue
            true = ModuleValues(exact=exact, eager=eager, squares=squares, rough=rough)
            value = eager if self.runtime == "eager" else values.get(name)
            if value is not None and value.size == exact.size:
                compared_ones.append(self._compared(name, true, value, self.taps.get(name)))
        output, part = f"layers.{self.layer + 1}/hidden_states", block.output
        last = part.eager if self.runtime == "eager" else values[output]
        true = ModuleValues(
            exact=part.exact, eager=part.eager, squares=part.squares, rough=part.rough
        )
        facts = TapFacts(value=output, axes="batch sequence channel")
        return [*compared_ones, self._compared("", true, last, facts)]

    def _compared(
        self, key: str, true: ModuleValues, value: np.ndarray, source: TapFacts | None
    ) -> Seen:
        return compared_module(
            key,
            f"{self.prefix}{key}".rstrip("."),
            true,
            value,
            source,
            judged=self.judged,
            dtype=self.dtype,
            runtime=self.runtime,
        )

    def _may_be_inside(self, first: Seen | None) -> bool:
        """Whether the first wrong tensor may be one of the attention's own."""
        if self.attention is None or self.spec is None or self.runtime == "eager":
            return False
        if first is None or first.stage.key == "":
            return True
        own = self.attention.split(".")[0]
        return first.stage.key == own or first.stage.key.startswith(f"{self.attention}") or (
            first.stage.key.endswith("norm.input")
        )  # fmt: skip

    def _inside(self, inputs: Arrays, values: Arrays) -> tuple[list[Seen], Suspect | None]:
        """The tensors of the attention, on the input that it has in the runtime: it is compared as
        a layer of its own."""
        spec, path = self.spec, self.attention
        assert spec is not None
        assert path is not None
        hidden = values[f"{path}.{ENTERS}"]
        given = attention_inputs(spec, self.locator.interface, self.layer, inputs, hidden)
        tensors = self.locator.weights(self.layer)
        weights = {name: x.double().numpy() for name, x in tensors.items()}
        layer = ReferenceLayer(spec, weights, frequencies(spec))
        trace = layer(given)
        eager = RotaryAttention.from_weights(spec, dict(tensors))
        with torch.no_grad():
            eager_values = eager_taps(eager, given)
        inner = []
        for stage in layer_stages(layer, layer, trace):
            name = f"{path}.{stage.key}"
            if name not in values or (stage.key not in eager_values and not stage.exact):
                continue
            named = replace(
                stage, name=f"{self.prefix}{path}.{stage.name}", judged=self._real(stage)
            )
            value = stage.arranged(cropped(values[name], stage), self.taps[name].axes)
            true = (
                stage.arranged(*eager_values[stage.key])
                if stage.key in eager_values
                else stage.expected
            )
            if value is not None and true is not None:
                source = self.taps[name].value
                inner.append(compared(named, self.dtype, self.runtime, value, true, source))
        inner += self._caches(layer, trace, values)
        inner.sort(key=lambda x: ORDER.index(x.stage.key))
        first = next(filter(self._wrong, inner), None)
        if first is None:
            return inner, None
        suspect = Suspect(
            layer=layer,
            trace=trace,
            inputs=given,
            first=first,
            seen={x.stage.key: x for x in inner},
            maker=maker_of(self.cutter.model, str(first.source)),
        )
        return inner, suspect

    def _caches(self, layer: ReferenceLayer, trace: Trace, values: Arrays) -> Iterator[Seen]:
        """The layer's cache after the call."""
        limits = ceiling(layer, trace)
        for name, (ours, expected) in zip(
            self.present, list(trace.outputs.items())[1:], strict=True
        ):
            value = values[name].reshape(expected.shape)
            squares = (limits[ours] / TIMES) ** 2
            stage = cache_stage(ours, expected, trace.starts + trace.x.shape[1], squares)
            seen = compared(stage, self.dtype, self.runtime, value, expected, name)
            yield replace(seen, stage=replace(stage, label=name))

    def _real(self, stage: Stage) -> np.ndarray | None:
        """Which elements are looked at: those of the stage, but of padding none."""
        if "sequence" not in stage.axes:
            return stage.judged
        shape = [1] * len(stage.axes)
        for axis, size in zip(("batch", "sequence"), self.judged.shape, strict=True):
            shape[stage.axes.index(axis)] = size
        real = self.judged.reshape(shape)
        return real if stage.judged is None else real & stage.judged

    def _told(self, first: Seen | None, suspect: Suspect | None, every: Sequence[Seen]) -> Located:
        shown = first if first is not None else every[-1]
        if first is None:
            diagnosis = (
                "Every tensor of the layer is inside of its tolerance when it is an output as "
                "well: what the runtime makes of the graph is wrong, as by fusing operators."
            )
        elif suspect is not None:
            diagnosis = sentence(first, suspect.maker, list(explanations(suspect)), suspect)
        else:
            maker = None if first.source is None else maker_of(
                self.cutter.model, first.source
            )  # fmt: skip
            found = list(plain_explanations(first, self.dtype))
            diagnosis = sentence(first, maker, found)
        tap = shown.tap
        return Located(
            case=self.passage.case(self.call),
            runtime=self.runtime,
            tensor=NOTHING if first is None else tap.tensor,
            value=tap.value,
            where=() if first is None else shown.stage.place(
                shown.value, self.passage.taken(self.passage.positions, self.call)
            ),
            metric=tap.metric,
            error=tap.error,
            tolerance=tap.tolerance,
            diagnosis=diagnosis,
            taps=tuple(x.tap for x in every),
        )  # fmt: skip


def _in_order(around: Sequence[Seen], inner: Sequence[Seen], path: str | None) -> list[Seen]:
    """What was compared, the attention's own tensors where it begins."""
    if path is None or not inner:
        return list(around)
    names = {x.stage.name for x in inner}
    at = next(
        (i for i, x in enumerate(around) if x.stage.key.startswith(path.split(".")[0])),
        len(around),
    )
    rest = [x for x in around[at:] if x.stage.name not in names]
    return [*around[:at], *inner, *rest]

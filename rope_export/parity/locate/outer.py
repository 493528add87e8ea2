"""Locates the first wrong tensor of a decoder around its layers: of the embedding, before the first
of them, and of the norm and the head, after the last."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import torch

from rope_export.arrays import to_numpy
from rope_export.errors import InputError, RopeExportError
from rope_export.exporter.taps import TapFacts
from rope_export.interface import Interface
from rope_export.parity.decoder.calls import Arrays, Left, cut_inputs
from rope_export.parity.decoder.cut import Cut, Cutter
from rope_export.parity.decoder.passage import last_new
from rope_export.parity.decoder.running import RunLayer
from rope_export.parity.locate.decoder import NOTHING, DecoderLocator
from rope_export.parity.locate.diagnosis import sentence
from rope_export.parity.locate.modules import ModuleValues, compared_module
from rope_export.parity.locate.outer_causes import OuterSuspect, outer_explanations
from rope_export.parity.locate.outer_model import Outer, OuterModel
from rope_export.parity.locate.stage import Seen
from rope_export.parity.locate.tapped_model import maker_of, opened, taps_in
from rope_export.parity.report.located import Located

CALLS = 3
"""Calls that are looked at on each runtime."""

CHUNK = 2**22
"""Numbers of the embeddings that are looked at together, where all of them are."""

EMBEDDINGS = "every token"
"""The case in which the embedding of every token is looked at."""

TOKENS = {"input_ids", "position_ids"}
"""Inputs that an embedding may take to be looked at of every token."""

Values = dict[str, ModuleValues]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Part:
    """A cut part of the model on one runtime, with the tensors by name that it gives."""

    cut: Cut
    run: RunLayer
    taps: Mapping[str, TapFacts]


class OuterLocator:
    """Runs what is around the layers again with every tensor on the way.

    layers: has looked at these, and is told what is found. last: whether the logits are those of
    each row's last new token alone.
    """

    def __init__(self, layers: DecoderLocator, *, last: bool) -> None:
        self.layers, self.last = layers, last
        self.model = OuterModel(layers.theirs, layers.dtype)
        self.taps = taps_in(self.cutter.model)
        self._parts: dict[tuple[str, str], _Part] = {}
        self.embedding = layers.theirs.model.get_input_embeddings().weight

    @property
    def cutter(self) -> Cutter:
        return self.layers.cutter

    @property
    def interface(self) -> Interface:
        return self.layers.interface

    def look(self, runtime: str, calls: Sequence[Left]) -> Located | None:
        """What is wrong there, in the calls that are given first, or none."""
        try:
            place, found = next(self._found(runtime, calls[:CALLS]), (0, None))
        except Exception as error:  # of anybody's module, which must not hide the verdict
            what = (
                error if isinstance(error, RopeExportError) else f"{type(error).__name__}: {error}"
            )
            self.layers.notes.append(
                f"{runtime}: what is around the layers was not looked at: {what}"
            )
            return None
        if found is not None:
            self.layers.located[runtime] = place, found
        return found

    def _found(self, runtime: str, calls: Sequence[Left]) -> Iterator[tuple[int, Located]]:
        """In the order of computation, each with the index of the layer that follows."""
        for left in calls:
            found = self._before(runtime, left)
            if found is not None:
                yield 0, found
        known = self.layers.located.get(runtime)
        if known is not None and known[1].tensor != NOTHING:
            return
        found = self._embeddings(runtime)
        if found is not None:
            yield 0, found
        for left in calls:
            found = self._after(runtime, left)
            if found is not None:
                yield len(self.layers.theirs.layers), found

    def _part(self, runtime: str, which: str) -> _Part:
        key = runtime, which
        if key not in self._parts:
            values = [x.value for x in self.taps.values()]
            try:
                cut = (
                    self.cutter.before_layers(values)
                    if which == "before"
                    else self.cutter.after_layers(self.interface.main_output, values)
                )
            except InputError as error:
                raise RopeExportError(f"{which} the layers, {error}") from error
            _, run = opened(runtime, onnx.load_from_string(cut.model), self.layers.threads)
            first = cut.outputs[0]
            facts = TapFacts(value=first, axes="batch sequence channel")
            self._parts[key] = _Part(cut=cut, run=run, taps={**self.taps, first: facts})
        return self._parts[key]

    def _before(self, runtime: str, left: Left) -> Located | None:
        passage, call = left.passage, left.call
        part = self._part(runtime, "before")
        ids, positions = (passage.taken(x, call) for x in (passage.ids, passage.positions))
        outer = self.model.run(ids, positions)
        values = part.run(cut_inputs(part.cut, None, passage, self.interface, call))
        seen = self._compared(runtime, part, outer.before, values, passage.new(call))
        return self._told(runtime, passage.case(call), seen, outer, ids, passage.new(call))

    def _embeddings(self, runtime: str) -> Located | None:
        """Of every token that there is, a few at a time."""
        part = self._part(runtime, "before")
        if not TOKENS.issuperset(part.cut.inputs):
            return None
        vocabulary, width = self.embedding.shape
        step = max(1, CHUNK // width)
        for start in range(0, vocabulary, step):
            ids = np.arange(start, min(start + step, vocabulary))[None]
            given = {"input_ids": ids, "position_ids": np.zeros_like(ids)}
            outer = self.model.run(ids, given["position_ids"])
            values = part.run({name: given[name] for name in part.cut.inputs})
            new = np.ones(ids.shape, bool)
            seen = self._compared(runtime, part, outer.before, values, new)
            found = self._told(runtime, EMBEDDINGS, seen, outer, ids, new)
            if found is not None:
                return found
        return None

    def _after(self, runtime: str, left: Left) -> Located | None:
        passage, call = left.passage, left.call
        part = self._part(runtime, "after")
        ids, positions = (passage.taken(x, call) for x in (passage.ids, passage.positions))
        dtype = getattr(torch, self.layers.dtype)
        entering = torch.from_numpy(np.ascontiguousarray(left.hidden_states)).to(dtype)
        outer = self.model.run(ids, positions, entering)
        given = cut_inputs(part.cut, to_numpy(entering), passage, self.interface, call)
        values = part.run(given)
        seen = self._compared(runtime, part, outer.after, values, passage.new(call))
        return self._told(runtime, passage.case(call), seen, outer, ids, passage.new(call))

    def _compared(
        self, runtime: str, part: _Part, true: Values, values: Arrays, new: np.ndarray
    ) -> list[Seen]:
        """Every tensor that both have, in order. new (rows, sequence): tokens that are no
        padding."""
        seen = []
        for name, module in true.items():
            facts = part.taps.get(name)
            value = None if facts is None else values.get(facts.value)
            if value is None:
                continue
            judged = new
            if self.last and value.size != module.exact.size:
                module, judged = _of_last(module, new), last_new(new, new)
            if value.size == module.exact.size and judged.any():
                many = module.exact.shape[-1] == len(self.embedding)
                seen.append(
                    compared_module(
                        name,
                        name,
                        module,
                        value,
                        facts,
                        judged=judged,
                        dtype=self.layers.dtype,
                        runtime=runtime,
                        features="logit" if many else "channel",
                    )
                )
        return seen

    def _told(
        self,
        runtime: str,
        case: str,
        every: Sequence[Seen],
        outer: Outer,
        ids: np.ndarray,
        new: np.ndarray,
    ) -> Located | None:
        at = next((i for i, x in enumerate(every) if x.failed), None)
        if at is None:
            return None
        first = every[at]
        suspect = OuterSuspect(
            first=first,
            before=every[at - 1].stage.key if at else None,
            outer=outer,
            model=self.model,
            ids=ids,
            new=new,
        )
        maker = None if first.source is None else maker_of(self.cutter.model, first.source)
        tap = first.tap
        where = first.stage.place(first.value, None)
        if first.stage.key in outer.before:
            place = dict(where)
            token = ids[place.get("batch", 0), place.get("sequence", 0)]
            where = (*where, ("token", int(token)))
        return Located(
            case=case,
            runtime=runtime,
            tensor=tap.tensor,
            value=tap.value,
            where=where,
            metric=tap.metric,
            error=tap.error,
            tolerance=tap.tolerance,
            diagnosis=sentence(first, maker, list(outer_explanations(suspect, self.layers.dtype))),
            taps=tuple(x.tap for x in every),
        )


def _of_last(module: ModuleValues, new: np.ndarray) -> ModuleValues:
    """Of each row's last new token."""

    def of(value: np.ndarray | None) -> np.ndarray | None:
        return None if value is None else last_new(value, new)

    return ModuleValues(
        exact=last_new(module.exact, new),
        eager=last_new(module.eager, new),
        squares=of(module.squares),
        rough=of(module.rough),
    )

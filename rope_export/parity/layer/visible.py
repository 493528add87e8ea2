"""Looks for calls on which every feature of a layer shows: without it, the reference would differ
by many times what a runtime's error may be."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import numpy as np

from rope_export.interface import Interface
from rope_export.parity.cases import FAR, SPARE, Case
from rope_export.parity.comparison import Arrays
from rope_export.parity.layer.call import LayerExpected
from rope_export.parity.layer.counterfactuals import Counterfactual, counterfactuals_of
from rope_export.parity.layer.counterfactuals.rotation import trained_length
from rope_export.parity.layer.deviations import steady
from rope_export.parity.layer.reference import ReferenceLayer
from rope_export.parity.layer.trace import Trace
from rope_export.parity.metrics import errors
from rope_export.parity.subject import Call, Revealing
from rope_export.spec import AttentionSpec, Feature

TIMES = 10
"""How many times the tolerance a fault must be off by, on one call at least, to be seen."""

NOTHING = 1e-3
"""Times the tolerance below which the reference counts as the same: float64's own rounding."""

MEMORY = 2**31
"""Bytes that one call may take, the reference's and eager's copies together."""

REACH = 4_096
"""Slots that a cached call goes beyond, whatever the file holds."""

LARGE = (2.0, 4.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0, 128.0, 256.0, 1024.0)
SMALL = tuple(2.0**-power for power in (3, 5, 7, 8, 9, 10, 12, 14, 17, 20))
"""Sizes of hidden states that are tried, one after the other."""

LARGEST = {"float16": 65_504 / 1.5}
"""What no value on the way may exceed: with rounding it stays below the largest number."""

SMALLEST = {"float16": 2.0**-11}
"""What the values of a stage must be in the root mean square: with eight times less, float16 would
keep fewer bits of them."""


def revealing_calls(
    layer: ReferenceLayer,
    rough: ReferenceLayer,
    interface: Interface,
    prepared: Callable[[Case], Call],
    lengths: Iterable[int],
) -> Revealing:
    """Calls that show every feature of a layer.

    rough: the layer with the roundings of a runtime's kernels. lengths: slots that might be a limit
    of the file; the longest context of the spec is added, and REACH where there is a cache.
    """
    spec = layer.spec
    limits = {*lengths, trained_length(spec) or 0, REACH if interface.caches else 0} - {0}
    search = _Search(spec, rough, interface, prepared, limits)
    named = [*spec.features(), *(_beyond(limit) for limit in sorted(limits))]
    not_visible = []
    for feature in named:
        for fault in counterfactuals_of(layer, feature):
            reason = search.hidden(fault)
            if reason is not None:
                line = {"feature": str(feature), "reason": f"{fault.fault}: {reason}"}
                not_visible.append(line)
    return Revealing(calls=tuple(search.chosen), not_visible=tuple(not_visible))


def _beyond(limit: int) -> Feature:
    return Feature(kind="lengths", name="lengths beyond", value=limit)


class _Search:
    """Calls that were tried, and those that showed something, in order."""

    def __init__(
        self,
        spec: AttentionSpec,
        rough: ReferenceLayer,
        interface: Interface,
        prepared: Callable[[Case], Call],
        limits: Iterable[int],
    ) -> None:
        self.spec, self.rough, self.prepared = spec, rough, prepared
        self.cache = interface.cache
        self.outputs = [tensor.name for tensor in interface.outputs]
        self.tried: dict[Case, Call | None] = {}
        self.chosen: dict[Call, None] = {}
        self.reach = max(filter(self.affordable, limits), default=0)

    def hidden(self, fault: Counterfactual) -> str | None:
        """Why no call shows a fault, or nothing; then the call that does is chosen."""
        best, count, large = 0.0, 0, ""
        for case in self.candidates(fault):
            if not self.affordable_case(case):
                size = footprint(self.spec, case) / 2**30
                large = f"a call over {case.total} slots takes {size:.1f} GiB; at most 2 are taken"
                break
            call = self.sound(case)
            if call is None:
                continue
            count += 1
            times = self.times(fault, call)
            if times >= TIMES or not call.eager_sound:  # in which eager itself shows one
                self.chosen.setdefault(call)
                return None
            best = max(best, times)
        if count == 0:
            return large or f"no call is within the range of {self.spec.dtype}, with steady weights"
        if best < NOTHING:
            return f"the same in all of {count} calls, with these weights"
        return f"at most {best:.2g} times the tolerance in {count} calls; {TIMES} are asked for"

    def sound(self, case: Case) -> Call | None:
        """The call, unless its values leave the range of the dtype, or rounding decides which slot
        is the largest."""
        if case not in self.tried:
            call = self.prepared(case)
            trace = trace_of(call)
            sound = case.scale <= 1 or steady(self.rough, trace)
            in_range = sound and is_in_range(self.spec, trace, call.eager)
            self.tried[case] = call if in_range else None
        return self.tried[case]

    def times(self, fault: Counterfactual, call: Call) -> float:
        """The fault's error over the tolerance of a row, in the row where it is largest."""
        wrong = fault.layer(fault.inputs(call.inputs)).outputs
        return max(
            error / call.tolerance(output, metric) if math.isfinite(error) else 0.0
            for output in self.outputs
            for metric, error in errors(*call.expected.difference(output, wrong[output])).items()
        )

    def candidates(self, fault: Counterfactual) -> Iterator[Case]:
        """Calls to try, the most promising first."""
        if fault.search == "long":
            yield from self.long(fault)
            return
        plain = self.plain()
        far = self.far(plain, fault.limit)
        large = [replace(plain, scale=scale) for scale in LARGE]
        small = [replace(plain, scale=scale) for scale in SMALL]
        order = {
            "plain": [plain, *far, *large, *small],
            "far": [*far, plain],
            "large": [*large, plain],
            "small": [*small, plain],
        }
        yield from order[fault.search]

    def plain(self) -> Case:
        if self.cache == "none":
            return Case(batch=2, sequence=24)
        lengths = (8, 3) if self.cache == "fixed" else None
        return Case(batch=2, sequence=24, past=8, lengths=lengths)

    def far(self, plain: Case, limit: int) -> list[Case]:
        """Positions that are drawn, that end just beyond the limit, and far and negative ones."""
        spec = self.spec
        if not spec.uses_positions:
            return []
        starts: list[int | None] = [limit - plain.total + 1] if limit else []
        starts += [None, FAR - plain.total, FAR // 2]
        trained = trained_length(spec)
        starts += [] if trained is None else [trained, 4 * trained]
        starts += [-1_000] if spec.first_position is None else []
        return [replace(plain, start=start) for start in starts]

    def long(self, fault: Counterfactual) -> Iterator[Case]:
        """More slots than the limit, by an eighth and then by more, for heavy rounding; loud
        ones around the limit of a window or a chunk, else the first and the last."""
        limit = fault.limit
        if fault.layer.spec == self.spec and self.reach >= limit:
            limit = self.reach
        for more in (limit // 8, limit // 2, 2 * limit):
            past = limit + max(more, 8)
            if self.cache == "none":
                yield Case(batch=1, sequence=past)
            elif limit == self.spec.window:
                loud = (past - limit, past - limit + 1)
                yield Case(batch=1, sequence=1, past=past, drawn=True, loud=loud)
            elif limit == self.spec.chunk:
                past += past % limit == 0  # or its own chunk would have no slot before it
                loud = (past // limit * limit - 1, past // limit * limit)
                yield Case(batch=1, sequence=1, past=past, drawn=True, loud=loud)
            else:
                yield Case(batch=1, sequence=3, past=past, drawn=True, loud=(0, past - 1))

    def affordable(self, limit: int) -> bool:
        past = limit + max(limit // 8, 8)
        cached = Case(batch=1, sequence=3, past=past, drawn=True)
        whole = Case(batch=1, sequence=past)
        return self.affordable_case(whole if self.cache == "none" else cached)

    def affordable_case(self, case: Case) -> bool:
        return footprint(self.spec, case) <= MEMORY


def footprint(spec: AttentionSpec, case: Case) -> int:
    """Bytes of one call: keys, values, what is computed of them, and scores, in float64 about ten
    times each, in the reference and the counterfactual; eager holds them for every head."""
    groups = spec.heads if spec.latent is not None else spec.kv_heads
    slots = case.batch * (case.total + SPARE) * (spec.head_dim + spec.value_head_dim)
    scores = case.batch * spec.heads * case.sequence * case.total
    width = case.batch * case.sequence * (spec.hidden_size + 3 * spec.heads * spec.head_dim)
    return 80 * (groups * slots + scores + width) + 8 * spec.heads * slots


def is_in_range(spec: AttentionSpec, trace: Trace, eager: Arrays) -> bool:
    """Whether the dtype holds every value on the way, with room on either side."""
    largest, smallest = LARGEST.get(spec.dtype), SMALLEST.get(spec.dtype)
    if largest is None or smallest is None:
        return all(bool(np.all(np.isfinite(x))) for x in eager.values())
    stages = [trace.x, *trace.projected.values(), trace.mixed, trace.output]
    products = trace.raw_scores / min(spec.softmax_scale, 1.0)
    top = max(float(np.max(np.abs(x), initial=0.0)) for x in (*stages, products))
    bottom = min(float(np.sqrt(np.mean(x**2))) for x in stages)
    return top <= largest and bottom >= smallest


def trace_of(call: Call) -> Trace:
    """What the reference layer computed on the way."""
    assert isinstance(call.expected, LayerExpected)
    return call.expected.trace

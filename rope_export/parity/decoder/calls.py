"""An artifact's calls on a text: of the whole model, and of a part that was cut out of it."""

from dataclasses import dataclass, replace

import numpy as np

from rope_export.arrays import fill_cache, numpy_dtype, to_numpy
from rope_export.errors import ProfileError
from rope_export.interface import Interface
from rope_export.parity.decoder.blocks import Block
from rope_export.parity.decoder.cases import Text
from rope_export.parity.decoder.cut import ENTERING, ZEROS, Cut
from rope_export.parity.decoder.passage import Passage
from rope_export.parity.subject import Outputs, Side
from rope_export.sessions import Session

Arrays = dict[str, np.ndarray]

STALE = 100.0
"""What lies in slots that are not valid, far beyond any that is."""


def numbers(interface: Interface, passage: Passage, call: int, capacity: int) -> Arrays:
    """The inputs of a call that are no cache."""
    starts, ends = passage.bounds(call)
    sequence = int((ends - starts).max())
    covered = int(starts.max()) + sequence
    inputs = {
        "input_ids": passage.taken(passage.ids, call),
        "position_ids": passage.taken(passage.positions, call),
    }
    width = covered
    if interface.mask is not None:
        if interface.input(interface.mask).shape[1] == "capacity":
            width = capacity
        mask = np.zeros((passage.text.rows, width), np.int64)
        for row, end in enumerate(ends):
            mask[row, :end] = passage.mask[row, :end]
        inputs[interface.mask] = mask
    if interface.lengths is not None:
        inputs[interface.lengths] = starts.astype(np.int64)
    return {name: x for name, x in inputs.items() if name in {y.name for y in interface.inputs}}


class Calls:
    """The calls of one text on a session, each with what the one before it has cached.

    Raises: ProfileError for a text that the session's inputs do not take, or that is longer than
        the only cache it takes.
    """

    def __init__(self, session: Session, passage: Passage) -> None:
        self.session, self.passage, self.interface = session, passage, session.interface
        text = passage.text
        _check_taken(text, passage.mask, session.interface)
        self.capacity = session.capacity or text.capacity
        if self.capacity < text.total:
            raise ProfileError(f"the text takes {text.total} slots, of {self.capacity}.")
        sizes = {
            "batch": text.rows,
            "past": int(text.lengths[0].max()),
            "capacity": self.capacity,
        }
        self.caches: Arrays = {}
        for pair in self.interface.caches:
            tensor = self.interface.input(pair.input)
            cache = np.full(tensor.sized(sizes), STALE, numpy_dtype(tensor.dtype))
            if text.past:
                fill_cache(cache, passage.drawn[pair.input], pair.axis, text.past)
            self.caches[pair.input] = cache

    def run(self, call: int) -> tuple[Arrays, Arrays]:
        """The inputs of one call and its outputs.

        Raises: RopeExportError if the runtime cannot run it.
        """
        inputs = {
            **numbers(self.interface, self.passage, call, self.capacity),
            **self.caches,
        }
        outputs = {name: to_numpy(x) for name, x in self.session.run(inputs).items()}
        self.caches = {pair.input: outputs[pair.output] for pair in self.interface.caches}
        return inputs, outputs


def _check_taken(text: Text, mask: np.ndarray, interface: Interface) -> None:
    """Raises: ProfileError for a text that a file of somebody else has no inputs for."""
    ends = text.lengths[-1]
    if interface.mask is None and any(0 in row[:end] for row, end in zip(mask, ends, strict=True)):
        raise ProfileError("there is padding, and no attention_mask.")
    if interface.positions is None and text.first:
        raise ProfileError(f"the first position is {text.first}, and there are no position_ids.")
    if interface.lengths is None and (text.lengths != text.lengths[:, :1]).any():
        raise ProfileError("rows are of unequal length, and there are no lengths.")


@dataclass(frozen=True, kw_only=True, eq=False)
class Left:
    """What the reference has after its last layer in one call of a text.

    hidden_states: (rows, sequence, hidden), in float64.
    """

    passage: Passage
    call: int
    hidden_states: np.ndarray


def cut_inputs(
    cut: Cut, entering: np.ndarray | None, passage: Passage, interface: Interface, call: int
) -> Arrays:
    """The inputs of a cut part that takes no value of a cache, but it may look at how many slots
    one has. entering: the hidden states, where it takes them."""
    capacity = passage.text.capacity
    given = numbers(interface, passage, call, capacity)
    if entering is not None:
        given |= {ENTERING: entering, ZEROS: np.zeros_like(entering)}
    starts, _ = passage.bounds(call)
    sizes = {"batch": passage.text.rows, "past": int(starts.max()), "capacity": capacity}
    for pair in interface.caches:
        if pair.input in cut.inputs:
            tensor = interface.input(pair.input)
            given[pair.input] = np.zeros(tensor.sized(sizes), numpy_dtype(tensor.dtype))
    return {name: given[name] for name in cut.inputs}


class RecordedCalls:
    """The outputs of one recorded call, in place of a session's. interface: of what the file has of
    them, which may be the logits alone."""

    def __init__(self, recorded: Outputs, passage: Passage, interface: Interface) -> None:
        case = passage.case(0)
        self.outputs, self.inputs = recorded.of(case) or {}, passage.text.cached(interface, 0)
        names = self.outputs.keys()
        self.interface = replace(
            interface,
            outputs=tuple(x for x in interface.outputs if x.name in (*names, "logits")),
            caches=tuple(x for x in interface.caches if x.output in names),
        )

    def run(self, call: int) -> tuple[Arrays, Arrays]:
        """What the caches were before the call, and its outputs; none where the file has none."""
        return self.inputs, self.outputs


class Kept:
    """One call for a recording: the inputs that the first session had, and what each session makes
    of these."""

    def __init__(self) -> None:
        self.inputs: Arrays = {}
        self.answers: dict[str, Arrays] = {}

    def add(self, runtime: str, session: Side, inputs: Arrays, outputs: Arrays) -> None:
        """inputs, outputs: of the session's own calls, each upon what it has cached itself."""
        if self.answers and isinstance(session, Session):
            outputs = {name: to_numpy(x) for name, x in session.run(self.inputs).items()}
        self.inputs = self.inputs or inputs
        self.answers[runtime] = outputs


def calls_of(side: Side, passage: Passage, interface: Interface) -> Calls | RecordedCalls:
    """The calls of one text. interface: of the artifact that is judged."""
    if isinstance(side, Session):
        return Calls(side, passage)
    return RecordedCalls(side, passage, interface)


def layer_inputs(
    cut: Cut, block: Block, passage: Passage, interface: Interface, call: int, layer: int
) -> Arrays:
    """The inputs of a cut layer: what the reference has for it."""
    given = cut_inputs(cut, block.entering, passage, interface, call)
    starts, _ = passage.bounds(call)
    for pair in interface.caches:
        if pair.input not in cut.inputs or pair.input.split(".")[1] != str(layer):
            continue
        cache = np.full_like(given[pair.input], STALE)
        for group, past in zip(passage.groups, block.past, strict=True):
            for at, row in enumerate(group.rows):
                if past:
                    value = past[pair.input.rpartition(".")[2]][at : at + 1]
                    fill_cache(cache[row : row + 1], value, pair.axis, [int(starts[row])])
        given[pair.input] = cache
    return given


def changed_bits(before: np.ndarray, after: np.ndarray, lengths: np.ndarray) -> float:
    """How many numbers of the valid slots (axis 2) have other bits than before the call."""
    bits = np.dtype(f"u{before.dtype.itemsize}")
    count = 0
    for old, new, length in zip(before, after, lengths, strict=True):
        pair = (np.ascontiguousarray(x[:, :length]).view(bits) for x in (old, new))
        count += int(np.sum(np.not_equal(*pair)))
    return float(count)


def new_slots(cache: np.ndarray, passage: Passage, call: int) -> np.ndarray:
    """Of a cache (rows, heads, slots, width) what the call wrote, (rows, sequence, heads, width);
    0 after a row's last token."""
    starts, ends = passage.bounds(call)
    shape = (cache.shape[0], int((ends - starts).max()), cache.shape[1], cache.shape[3])
    new = np.zeros(shape)
    for row, (start, end) in enumerate(zip(starts, ends, strict=True)):
        new[row, : end - start] = cache[row, :, start:end].swapaxes(0, 1).astype(np.float64)
    return new

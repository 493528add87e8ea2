"""A decoder's calls that lie in a file: each is a text of one call, upon the cache that it had."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from rope_export.errors import InputError
from rope_export.interface import Interface
from rope_export.parity.comparison import Arrays
from rope_export.parity.decoder.cases import Text
from rope_export.parity.recording.files import Recording, checked_inputs
from rope_export.parity.report.result import Report
from rope_export.parity.subject import Request


@dataclass(frozen=True, kw_only=True, eq=False)
class RecordedText(Text):
    """One recorded call. inputs: by the artifact's names. shown (rows, total): its mask over the
    slots that are valid after it. tokens, places (rows, sequence): its tokens and positions."""

    inputs: Mapping[str, np.ndarray] = field(repr=False)
    shown: np.ndarray = field(repr=False)
    tokens: np.ndarray = field(repr=False)
    places: np.ndarray = field(repr=False)

    def mask(self) -> np.ndarray:
        return self.shown

    def positions(self) -> np.ndarray:
        return self._placed(self.places)

    def ids(self, vocabulary: int, seed: int) -> np.ndarray:
        return self._placed(self.tokens)

    def cached(self, interface: Interface, seed: int) -> Arrays:
        return {pair.input: self.inputs[pair.input] for pair in interface.caches}

    def _placed(self, values: np.ndarray) -> np.ndarray:
        """Of the new tokens, (rows, sequence), in their slots, (rows, total)."""
        placed = np.zeros((self.rows, self.total), np.int64)
        for row, (start, end) in enumerate(zip(*self.lengths, strict=True)):
            placed[row, start:end] = values[row, : end - start]
        return placed


def replayed_texts(
    request: Request, interface: Interface, vocabulary: int, report: Report
) -> list[RecordedText] | None:
    """The calls that were asked for in place of a decoder's own texts, which the report tells; none
    without.

    Raises: InputError for a call that the model does not take.
    """
    if request.replay is None:
        return None
    recording = Recording(request.replay, interface)
    texts = recorded_texts(recording, interface, vocabulary)
    report.left_out.append(f"only calls of {recording.shown} were compared: {len(texts)}.")
    return texts


def recorded_texts(
    recording: Recording, interface: Interface, vocabulary: int
) -> list[RecordedText]:
    """Every call of a recording.

    vocabulary: how many tokens the model knows.
    Raises: InputError for a call that the model does not take.
    """
    texts = []
    for case in recording.cases:
        inputs = checked_inputs(recording, case, interface)
        tokens = inputs[interface.main_input]
        unknown = tokens[(tokens < 0) | (tokens >= vocabulary)]
        if unknown.size:
            raise InputError(
                f"{recording.shown}, {case}: {interface.main_input} holds {unknown[0]}; the model "
                f"knows tokens from 0 to {vocabulary - 1}."
            )
        texts.append(_text(case, inputs, interface))
    return texts


def _text(case: str, inputs: Arrays, interface: Interface) -> RecordedText:
    tokens = inputs[interface.main_input]
    rows, sequence = tokens.shape
    slots = 0
    if interface.caches:
        pair = interface.caches[0]
        slots = inputs[pair.input].shape[pair.axis]
    past = _past(inputs, interface, rows, sequence, slots)
    mask = inputs.get(interface.mask or "", np.ones((rows, max(past) + sequence), np.int64))
    counts = _counts(mask, past, sequence, fixed=interface.cache == "fixed")
    total = max(start + count for start, count in zip(past, counts, strict=True))
    shown = np.zeros((rows, total), np.int64)
    for row, (start, count) in enumerate(zip(past, counts, strict=True)):
        shown[row, : start + count] = mask[row, : start + count]
    places = inputs.get(interface.positions or "")
    if places is None:  # the ones of the mask are counted
        counted = np.maximum(np.cumsum(shown, axis=1) - 1, 0)
        places = np.stack([counted[row][np.minimum(at + np.arange(sequence), total - 1)]
                           for row, at in enumerate(past)])  # fmt: skip
    return RecordedText(
        name=case,
        counts=(counts,),
        past=past,
        spare=slots - total if interface.cache == "fixed" else 0,
        inputs=inputs,
        shown=shown,
        tokens=tokens,
        places=places,
    )


def _past(
    inputs: Arrays, interface: Interface, rows: int, sequence: int, slots: int
) -> tuple[int, ...]:
    """Valid slots of each row before the call."""
    if interface.cache != "fixed":
        return (slots,) * rows
    lengths = inputs.get(interface.lengths or "")
    if lengths is None or (lengths < 0).any():  # then every row's follow from the mask's width
        assert interface.mask is not None
        return (inputs[interface.mask].shape[1] - sequence,) * rows
    return tuple(int(x) for x in lengths)


def _counts(
    mask: np.ndarray, past: tuple[int, ...], sequence: int, *, fixed: bool
) -> tuple[int, ...]:
    """New tokens of each row: in a fixed cache without those at its end that the mask hides, which
    the next call overwrites, unless that were so of every row."""
    if not fixed:
        return (sequence,) * len(past)
    counts = []
    for row, start in enumerate(past):
        new = mask[row, start : start + sequence]
        counts.append(int(np.max(np.flatnonzero(new == 1) + 1, initial=1)))
    return tuple(counts) if max(counts) == sequence else (sequence,) * len(past)

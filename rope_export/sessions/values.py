"""What the values of a call's inputs must be, beyond their names, dtypes and shapes."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from rope_export.arrays import like, to_numpy
from rope_export.errors import TensorError
from rope_export.sessions.slots import (
    Once,
    check_hidden,
    hidden_slots,
    is_moderate,
    limit_of,
    without,
)

if TYPE_CHECKING:
    from rope_export.arrays import Array
    from rope_export.artifacts.manifest import ModelFacts
    from rope_export.interface import Interface


def check_positions(manifest: "ModelFacts", inputs: "Mapping[str, Array]") -> None:
    """Raises: TensorError for a position before the first that the manifest states."""
    first, name = manifest.first_position, manifest.interface.positions
    if first is None or name is None or 0 in inputs[name].shape:  # whose shape is refused
        return
    lowest = int(inputs[name].min())
    if lowest < first:
        raise TensorError(
            f"input {name!r} holds {lowest}; queries of this layer grow with their position, which "
            f"is defined from {first} on."
        )


def check_tokens(manifest: "ModelFacts", inputs: "Mapping[str, Array]") -> None:
    """Raises: TensorError for a token that a decoder does not know."""
    if manifest.vocabulary is None:
        return
    name = manifest.interface.main_input
    low, high = int(inputs[name].min()), int(inputs[name].max())
    if low < 0 or high >= manifest.vocabulary:
        raise TensorError(
            f"input {name!r} holds {low if low < 0 else high}; the decoder knows the tokens 0 to "
            f"{manifest.vocabulary - 1}."
        )


def check_reach(manifest: "ModelFacts", inputs: "Mapping[str, Array]") -> None:
    """Raises: TensorError for a position beyond those that a model has."""
    name = manifest.interface.positions
    if manifest.positions is None or name is None or 0 in inputs[name].shape:
        return
    highest = int(inputs[name].max())
    if highest >= manifest.positions:
        raise TensorError(
            f"input {name!r} holds {highest}; the model has {manifest.positions} positions, 0 to "
            f"{manifest.positions - 1}. Give fewer tokens."
        )


def check_plain(
    manifest: "ModelFacts", *, rows: int, new: int, lengths: np.ndarray, padded: bool
) -> None:
    """Checks a call of a model that was exported without padding.

    new: tokens of each row. lengths: slots that are filled before, int64 (batch or 1). padded:
    whether a token is padding.
    Raises: TensorError for what such a model does not compute.
    """
    if manifest.interface.mask is None or manifest.padding:
        return
    remedy = "it was exported without padding. Export it with padding for such calls."
    if padded:
        raise TensorError(f"input {manifest.interface.mask!r} holds a 0; {remedy}")
    if rows > 1 and new > 1 and lengths.any():
        raise TensorError(
            f"{rows} rows of {new} new tokens each go on from a cache, which is one row's or one "
            f"token's alone; {remedy}"
        )
    slots = int(lengths.max()) + new
    if manifest.positions is not None and slots > manifest.positions:
        raise TensorError(
            f"the call takes {slots} slots; the model has {manifest.positions} positions. Give "
            f"fewer tokens."
        )


def row_lengths(
    interface: "Interface", values: "Mapping[str, Array]", axes: Mapping[str, int]
) -> np.ndarray | None:
    """Valid slots of each row of a fixed cache before a call, int64 (batch): those given, or what
    the mask covers before the new tokens."""
    if interface.lengths is None:
        return None
    if interface.lengths in values:
        return to_numpy(values[interface.lengths])
    return np.full(axes["batch"], axes["total"] - axes["sequence"])


class ValueChecks:
    """Looks at the mask of a call, and at what its caches hold in slots that it hides.

    whole_capacity: every slot of a fixed cache takes part in the computation, whatever the
    manifest's stale_slots says.
    """

    def __init__(self, manifest: "ModelFacts", *, whole_capacity: bool) -> None:
        self._interface = manifest.interface
        self._stale = whole_capacity or manifest.stale_slots == "finite"
        self._seen = Once()

    def check(
        self, originals: Mapping[str, object], values: "dict[str, Array]", axes: Mapping[str, int]
    ) -> None:
        """Refuse wrong masks and hidden slots that would spoil a row; of padded tokens, put zeros
        in the place of what is not finite.

        originals: the inputs as the caller has them; a cache is looked at once, as long as it
            lives. values: the same as plain tensors, of which the main input may be replaced. axes:
            the size of every axis.
        Raises: TensorError naming the input, the row and the slot.
        """
        interface = self._interface
        mask = None if interface.mask is None else values[interface.mask]
        lengths = row_lengths(interface, values, axes)
        unseen = [pair for pair in interface.caches if originals[pair.input] not in self._seen]
        if mask is None and not (self._stale and unseen):
            return
        hidden = hidden_slots(mask, lengths, axes, stale=self._stale)
        if hidden is None:
            return
        for pair in unseen:
            limit = limit_of(interface.input(pair.input).dtype)
            check_hidden(pair.input, values[pair.input], hidden.cached, limit, axis=pair.axis)
            self._seen.add(originals[pair.input])
        if hidden.new is None:
            return
        tokens = values[interface.main_input]
        limit = limit_of(interface.input(interface.main_input).dtype)
        if not is_moderate(tokens[like(tokens, hidden.new)], limit):
            values[interface.main_input] = without(tokens, hidden.new)

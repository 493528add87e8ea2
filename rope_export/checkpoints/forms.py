"""How a source stores the tensors of a layer that it does not store as plain numbers."""

from collections.abc import Mapping
from functools import partial
from typing import Protocol

from torch import Tensor

from rope_export.checkpoints.integers import Integers
from rope_export.checkpoints.layout import Piece
from rope_export.spec import AttentionSpec


class Tensors(Protocol):
    """A checkpoint's tensors by their full names."""

    def form(self, name: str) -> str | None:
        """The form of a tensor, or nothing for plain numbers."""

    def integers(self, name: str) -> Integers | None:
        """A weight as the checkpoint keeps it, where it keeps integers."""


def forms_of(tensors: Tensors, pieces: Mapping[str, Piece]) -> dict[str, str]:
    """The form of each tensor that is not stored as plain numbers; see `Layer.forms`."""
    forms = {name: tensors.form(piece.name) for name, piece in pieces.items()}
    return {name: form for name, form in forms.items() if form is not None}


def integers_of(
    tensors: Tensors, pieces: Mapping[str, Piece], spec: AttentionSpec
) -> dict[str, Integers]:
    """The integers of the weights that are stored so and whose rows are those of one tensor."""
    integers = {}
    for name, piece in pieces.items():
        whole = tensors.integers(piece.name) if len(piece.names) == 1 else None
        rows = None if whole is None else whole.taken(partial(_take, piece, spec))
        if rows is not None:
            integers[name] = rows
    return integers


def _take(piece: Piece, spec: AttentionSpec, tensor: Tensor) -> Tensor:
    return piece.take(tensor, spec)

"""A checkpoint as a model: config.json and safetensors, in a folder or on a hub."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from torch import Tensor

from rope_export.checkpoints.adapter import Adapter, merged
from rope_export.checkpoints.config import ATTENTION_KINDS
from rope_export.checkpoints.files import WeightFiles, weight_files
from rope_export.checkpoints.forms import forms_of, integers_of
from rope_export.checkpoints.hub import Hub
from rope_export.checkpoints.layout import Piece, TensorLayout
from rope_export.checkpoints.locators import Locator
from rope_export.checkpoints.model import Layer, Model, with_notes
from rope_export.checkpoints.parts import named_parts
from rope_export.checkpoints.placing import every_delta, layer_deltas
from rope_export.checkpoints.stacks import prefix_of, shared_names
from rope_export.checkpoints.tensors import (
    Reader,
    check_rotation,
    layer_tensors,
    read_layer,
    reader,
)
from rope_export.checkpoints.unpacking import Unpacking, unpacked_tensors
from rope_export.errors import SpecError
from rope_export.spec import AttentionSpec, DType


class Checkpoint(Model):
    """A checkpoint: config.json and safetensors, and an adapter to merge if one is given.

    locator: the way to its files. to_merge: the adapter. adapter_notes: what a user should know of
    adapters that are not merged.
    """

    kind = "checkpoint"

    def __init__(
        self,
        locator: Locator,
        path: str,
        config: dict[str, Any],
        *,
        part: str | None,
        dtype: DType,
        adapter: Adapter | None = None,
        adapter_notes: tuple[str, ...] = (),
    ) -> None:
        super().__init__(path, config, part, dtype)
        self.locator, self.to_merge, self._adapter_notes = locator, adapter, adapter_notes
        self.adapter = None if adapter is None else adapter.where
        self._checked: set[Any] = set()

    @cached_property
    def files(self) -> WeightFiles:
        """The files that hold the weights."""
        return weight_files(self.locator, self.config)

    @cached_property
    def tensors(self) -> Unpacking:
        """The tensors, quantized ones under the names that they would have otherwise."""
        files = self.files.tensors
        return unpacked_tensors(self.config, self.locator, files, reader(self.locator, files))

    def layer(self, index: int = 0) -> Layer:
        with named_parts(self.config, self.part, index):
            read, spec = self._read_layer(index)
            tensors = self.tensors
            layout = read.layout(index).among(tensors.names, index, spec)
            with tensors.named():
                pieces = layer_tensors(tensors.names, index, spec, layout, read.part, tensors.idle)
        self._check_rotation(layout, spec)
        names = [name for piece in pieces.values() for name in piece.names]
        used = [stored for name in names for stored in tensors.behind(name)]
        notes = read.notes + self.files.notes + self.files.unlike_index(used) + self._adapter_notes
        facts = self._facts(index) | {"files": self.files.of(used)}
        if isinstance(self.locator, Hub) and self.locator.revision is not None:
            facts["revision"] = self.locator.revision
        as_stored = pieces
        read_tensor: Reader = tensors.read
        if self.to_merge is not None:
            read_tensor, as_stored, merged_facts = self._merge(
                self.to_merge, pieces, layout.path(index)
            )
            facts["adapter"] = merged_facts
            if not merged_facts["merged"]:
                notes += ("the adapter adapts other modules and changes nothing in this layer.",)
        return Layer(
            index=index,
            spec=spec,
            facts=with_notes(facts, notes),
            path=self.path,
            names={name: piece.name for name, piece in pieces.items()},
            weights=lambda: read_layer(read_tensor, pieces, spec),
            weight=lambda name: read_layer(read_tensor, {name: pieces[name]}, spec)[name],
            adapter=self.adapter,
            locator=self.locator,
            files=self.files,
            notes=notes,
            forms=forms_of(tensors, as_stored),
            integers=lambda: integers_of(tensors, as_stored, spec),
        )

    @property
    def shared(self) -> tuple[str, ...]:
        layout, prefix = self._stack
        return shared_names(self.tensors.names, prefix + layout.stack)

    def beside(self, index: int) -> tuple[str, ...]:
        layout, prefix = self._stack
        names = self._in_block(index, prefix + layout.block(index), self.tensors.names)
        attends = self.kinds[index] in ATTENTION_KINDS
        attention = prefix + layout.path(index)
        return tuple(name for name in names if not (attends and name.startswith(attention)))

    def tensor(self, name: str) -> Tensor:
        if name not in self.tensors.names:
            raise SpecError(f"tensor {name!r}: {self.path} has no tensor of that name.")
        return self._read(name)

    @cached_property
    def _read(self) -> Reader:
        """Reads any tensor, with what an adapter adds."""
        if self.to_merge is None:
            return self.tensors.read
        deltas = every_delta(self.to_merge, self.tensors.names)
        return merged(self.tensors.read, self.to_merge, deltas)

    @cached_property
    def _stack(self) -> tuple[TensorLayout, str]:
        """The layout of the layers, and what stands before it in the names of this checkpoint."""
        index = next((at for at, kind in enumerate(self.kinds) if kind in ATTENTION_KINDS), 0)
        with named_parts(self.config, self.part, index):
            read, spec = self._read_layer(index)
            layout = read.layout(index).among(self.tensors.names, index, spec)
            example = next(iter(layout.pieces(spec).values())).name
            prefix = prefix_of(self.tensors.names, layout.path(index), example, read.part)
        return layout, prefix

    def _check_rotation(self, layout: TensorLayout, spec: AttentionSpec) -> None:
        """Once for each rotation that the layers have."""
        if (layout.rotation, spec.rope) not in self._checked:
            check_rotation(self.tensors.read, self.tensors.names, layout, spec)
            self._checked.add((layout.rotation, spec.rope))

    def _merge(
        self, adapter: Adapter, pieces: Mapping[str, Piece], path: str
    ) -> tuple[Reader, dict[str, Piece], dict[str, Any]]:
        """A reader of the layer's tensors with what the adapter adds, those that it leaves as they
        are stored, and the facts of the merge."""
        names = [name for piece in pieces.values() for name in piece.names]
        deltas = layer_deltas(adapter, names, path, self.tensors.names)
        as_stored = {
            name: piece for name, piece in pieces.items() if not deltas.keys() & set(piece.names)
        }
        return merged(self.tensors.read, adapter, deltas), as_stored, adapter.facts(deltas)

"""A GGUF file as a model."""

from pathlib import Path

from torch import Tensor

from rope_export.checkpoints.forms import forms_of, integers_of
from rope_export.checkpoints.gguf.file import GgufFile
from rope_export.checkpoints.model import Layer, Model, with_notes
from rope_export.checkpoints.tensors import layer_tensors, read_layer
from rope_export.errors import SpecError
from rope_export.spec import DType


class GgufModel(Model):
    """A GGUF file: a text decoder alone.

    file: open, with the tensors of attentions under transformers' names.
    """

    kind = "gguf"

    def __init__(self, path: Path, dtype: DType) -> None:
        self.file = GgufFile(path)
        super().__init__(str(path.resolve()), self.file.config, None, dtype)

    def layer(self, index: int = 0) -> Layer:
        read, spec = self._read_layer(index)
        pieces = layer_tensors(self.file.names, index, spec, read.layout(index), None)
        return Layer(
            index=index,
            spec=spec,
            facts=with_notes(self._facts(index) | {"files": [self.file.path.name]}, ()),
            path=self.path,
            names={name: self.file.names[piece.name] for name, piece in pieces.items()},
            weights=lambda: read_layer(self.file.read, pieces, spec),
            weight=lambda name: read_layer(self.file.read, {name: pieces[name]}, spec)[name],
            forms=forms_of(self.file, pieces),
            integers=lambda: integers_of(self.file, pieces, spec),
        )

    @property
    def shared(self) -> tuple[str, ...]:
        return tuple(
            name for name in sorted(self.file.tensors) if not name.startswith(("blk.", "rope_"))
        )

    def beside(self, index: int) -> tuple[str, ...]:
        return tuple(self._in_block(index, f"blk.{index}.", self.file.tensors))

    def tensor(self, name: str) -> Tensor:
        if name not in self.file.names:
            raise SpecError(f"tensor {name!r}: {self.path} has no tensor of that name.")
        return self.file.read(name)

"""A config without a checkpoint as a model: the weights of its layers are drawn from a seed."""

from typing import Any

from rope_export.checkpoints.drawn import drawn_weights
from rope_export.checkpoints.model import Layer, Model, with_notes
from rope_export.checkpoints.parts import named_parts
from rope_export.checkpoints.unpacking import refuse_unread
from rope_export.errors import CheckpointError
from rope_export.spec import DType


class DrawnModel(Model):
    """A config whose layers' weights are drawn. seed: of the draws, 0 or more."""

    kind = "drawn"

    def __init__(
        self, path: str, config: dict[str, Any], *, part: str | None, dtype: DType, seed: int
    ) -> None:
        if seed < 0:
            raise CheckpointError(f"`seed`={seed}: it must be 0 or more.")
        super().__init__(path, config, part, dtype)
        self.seed = seed

    def layer(self, index: int = 0) -> Layer:
        with named_parts(self.config, self.part, index):
            read, spec = self._read_layer(index)
            refuse_unread(self.config, read.layout(index), index, spec)
        return Layer(
            index=index,
            spec=spec,
            facts=with_notes(self._facts(index) | {"seed": self.seed}, read.notes),
            path=self.path,
            names={name: name for name in spec.weight_shapes},
            weights=lambda: drawn_weights(spec, self.seed, index),
            weight=lambda name: drawn_weights(spec, self.seed, index)[name],
            notes=read.notes,
        )

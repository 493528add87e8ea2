"""A checkpoint whose tensors are drawn from a seed, for a config that has none.

It has the names and shapes that transformers' save_pretrained gives, and is read as a folder is.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any
from zlib import crc32

import numpy as np
import torch
from torch import Tensor, nn

from rope_export.checkpoints import Layer, Model
from rope_export.checkpoints.layout import Piece
from rope_export.checkpoints.tensors import layer_tensors, read_layer
from rope_export.decoder.naming import State, recipes
from rope_export.errors import SpecError
from rope_export.reading.models import reason

FILE = "model.safetensors"
"""Where the tensors would lie."""


class Drawn:
    """The tensors of a checkpoint, each from a stream of its own, the same on every machine.

    With them hidden states and logits are of order 1: embeddings of variance 1 (1 / hidden where
    they are the head as well), matrices of variance 1 / in_features, norms near what the model
    starts with, biases of variance 1 / 4, sinks of variance 1.
    """

    def __init__(
        self, model: Any, state: State, tied: Mapping[str, Sequence[str]], seed: int
    ) -> None:
        from transformers.core_model_loading import revert_weight_conversion

        once = {name: x for name, x in state.items() if tied.get(name, (name,))[0] == name}
        try:
            saved = revert_weight_conversion(model, once)
        except Exception as error:
            raise SpecError(
                f"transformers cannot name what it saves of {type(model).__name__} "
                f"({reason(error)}), so no weights are drawn for it."
            ) from error
        self.seed = seed
        self.shapes = {name: tuple(tensor.shape) for name, tensor in saved.items()}
        self.names = dict.fromkeys(saved, FILE)
        targets = {
            name: target
            for target, recipe in recipes(saved, model, state).items()
            for name in recipe.names
        }
        initial = _initial(model)
        self._distributions = {
            name: _distribution(
                targets.get(name, name), shape, initial, len(tied.get(targets.get(name, name), "1"))
            )
            for name, shape in self.shapes.items()
        }

    def read(self, name: str) -> Tensor:
        """float32, of the shape that transformers saves."""
        stream = np.random.Generator(np.random.PCG64([self.seed, crc32(name.encode())]))
        mean, spread = self._distributions[name]
        values = stream.standard_normal(self.shapes[name], dtype=np.float32)
        values *= np.float32(spread)
        if mean:
            values += np.float32(mean)
        return torch.from_numpy(values)

    def form(self, name: str) -> str | None:
        return None

    def behind(self, name: str) -> list[str]:
        return [name]

    def pieces(self, source: Model, layer: Layer) -> dict[str, Piece]:
        """Where the tensors of an attention layer are, by their names in its spec."""
        layout = source.read.layout(layer.index).among(self.names, layer.index, layer.spec)
        return layer_tensors(self.names, layer.index, layer.spec, layout, source.read.part)

    def layer(self, source: Model, layer: Layer) -> Layer:
        """An attention layer of the source with weights of this checkpoint."""
        pieces = self.pieces(source, layer)
        return replace(
            layer,
            names={name: piece.name for name, piece in pieces.items()},
            weights=lambda: read_layer(self.read, pieces, layer.spec),
            weight=lambda name: read_layer(self.read, {name: pieces[name]}, layer.spec)[name],
        )


def _distribution(
    name: str, shape: tuple[int, ...], initial: Callable[[str], float | None], uses: int
) -> tuple[float, float]:
    """Mean and standard deviation of a tensor, by the parameter that it becomes.

    uses: how many names the parameter has: an embedding has two where it is the head as well.
    """
    kind = name.rpartition(".")[2]
    if "sink" in kind:
        return 0.0, 1.0
    if kind == "bias":
        return 0.0, 0.5
    start = initial(name)
    if len(shape) < 2:
        return start or 0.0, 0.25
    if start is None:  # of an embedding
        return 0.0, 1.0 if uses == 1 else 1 / math.sqrt(shape[1])
    return 0.0, 1 / math.sqrt(max(shape[-2:]) if len(shape) > 2 else shape[1])


def _initial(model: Any) -> Callable[[str], float | None]:
    """What a parameter is before training, in the mean; none for one of an embedding."""

    @torch.no_grad()
    def initial(name: str) -> float | None:
        path, _, kind = name.rpartition(".")
        module = model.get_submodule(path)
        if isinstance(module, nn.Embedding):
            return None
        if module._parameters.get(kind) is None or module._parameters[kind].ndim > 1:
            return 0.0
        if any(x.ndim > 1 for x in module.parameters(recurse=False)):
            return 0.0
        fresh = deepcopy(module).to_empty(device="cpu")
        for parameter in fresh.parameters(recurse=False):
            parameter.fill_(1.0)
        model._init_weights(fresh)
        return float(fresh._parameters[kind].float().mean())

    return initial

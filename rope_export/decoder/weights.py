"""Every parameter of transformers' model, read from a source when it is asked for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from rope_export.checkpoints import Layer, Model
from rope_export.checkpoints.checkpoint import Checkpoint
from rope_export.checkpoints.drawn_model import DrawnModel
from rope_export.checkpoints.gguf.model import GgufModel
from rope_export.checkpoints.tensors import deployed
from rope_export.decoder.adapted import Adapted
from rope_export.decoder.drawing import Drawn
from rope_export.decoder.naming import Recipe, Stand, recipes, state_of, ties
from rope_export.decoder.nested import Nested
from rope_export.decoder.packed import GgufTensors
from rope_export.errors import CheckpointError, SpecError
from rope_export.spec import DType


class Tensors(Protocol):
    """The tensors of a source. names: each with the file that holds it."""

    @property
    def names(self) -> Mapping[str, str]: ...
    def read(self, name: str) -> Tensor: ...
    def form(self, name: str) -> str | None: ...
    def behind(self, name: str) -> list[str]: ...


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Where a parameter comes from.

    names: of the source's tensors. files: that hold them. form: how the source stores them, if not
    as plain numbers. adapter: whether an adapter changes it.
    """

    names: tuple[str, ...]
    files: tuple[str, ...]
    form: str | None
    adapter: bool = False


class DecoderWeights:
    """The parameters and persistent buffers of transformers' model, from a source.

    names: of all of them, tied ones once for each name. shapes: by name. nbytes: of all, tied ones
    once, in `dtype`.
    """

    def __init__(self, model: Any, source: Model, dtype: DType) -> None:
        """model: transformers' module for the source, whole and on meta or empty; it may be changed
        afterwards. dtype: what values are rounded to.

        Raises: CheckpointError for a parameter that the source lacks, a file that is missing, and
            an adapter of another model; SpecError for a source that is not read.
        """
        self.source, self.dtype = source, dtype
        self._state = state_of(model)
        self._ties = ties(model)
        self.names = tuple(self._state)
        self._parameters = frozenset(name for name, _ in model.named_parameters())
        self.shapes = {name: tuple(x.shape) for name, x in self._state.items()}
        self._stand = Stand(model.config, self._state)
        self._drawn: Drawn | None = None
        self._adapted: Adapted | None = None
        self._outer: Callable[[str], str] = str
        self._tensors, self._recipes = self._opened(model, source)
        self._computed = {
            name: buffer.detach().clone()
            for name, buffer in model.named_buffers()
            if name in self._state and not self._named(name) and buffer.device.type != "meta"
        }
        self._check_complete()

    @property
    def nbytes(self) -> int:
        size = torch.empty((), dtype=getattr(torch, self.dtype)).element_size()
        tied = {self._ties.get(name, (name,))[0] for name in self.names}
        return sum(self._state[name].numel() * size for name in tied)

    def tied(self, name: str) -> tuple[str, ...]:
        """All names of the parameter, the one that the source has first."""
        names = self._ties.get(name, (name,))
        return (*self._named(name), *(x for x in names if x not in self._recipes))

    def tensor(self, name: str) -> Tensor:
        """A parameter or persistent buffer by its name in transformers' model.

        Returns: of the model's shape, contiguous, rounded to `dtype` where it has fractions, but
            for those that transformers keeps in float32.
        Raises: CheckpointError naming the source's tensor: damaged, of another shape or dtype, with
            values that are not finite or beyond `dtype`; SpecError for a name that there is not.
        """
        if name not in self._state:
            raise CheckpointError(f"tensor {name!r}: the model has no parameter of that name.")
        if name in self._computed:
            return self._rounded(name, name, self._computed[name])
        stored = self._named(name)
        value = self._made(stored[0])
        for other in stored[1:]:
            if not torch.equal(value, self._made(other)):
                raise CheckpointError(
                    f"{stored[0]!r} and {other!r} are one parameter by the config "
                    f"(tie_word_embeddings), but the source has different values for them. "
                    f"Correct the config."
                )
        recipe = self._recipes[stored[0]]
        shown = recipe.names[0] if len(recipe.names) == 1 else stored[0]
        return self._rounded(name, shown, value)

    def facts(self, name: str) -> Facts:
        """Where a parameter comes from; a buffer that the model computes has no names."""
        if name in self._computed:
            return Facts(names=(), files=(), form=None)
        stored = self._named(name)[0]
        recipe = self._recipes[stored]
        return Facts(
            names=tuple(x for part in recipe.names for x in self._tensors.behind(part)),
            files=tuple(sorted({self._tensors.names[part] for part in recipe.names})),
            form=next(filter(None, map(self._tensors.form, recipe.names)), None),
            adapter=self._adapted is not None and stored in self._adapted.deltas,
        )

    def layer(self, index: int) -> Layer:
        """One attention layer; drawn ones from the same draws as the rest of the model."""
        layer = self.source.layer(index)
        if self._drawn is None:
            return layer
        return self._drawn.layer(self.source, layer)

    def refuse_unread(self, index: int, attention: str) -> None:
        """Refuses a layer whose attention has a parameter, at this path in the model, that our
        reading of the attention leaves out.

        Raises: SpecError naming it.
        """
        read = set(self.layer(index).names.values())
        for name in self.names:
            inside = name in self._parameters and name.startswith(f"{attention}.")
            if inside and read.isdisjoint(self._recipes[self._named(name)[0]].names):
                raise SpecError(
                    f"{name} is no part of the attention as it is read here, so the decoder is not "
                    f"exported whole; export one of its layers with `layer`."
                )

    def _opened(self, model: Any, source: Model) -> tuple[Tensors, dict[str, Recipe]]:
        """The source's tensors, and the recipes of what is made of them."""
        if isinstance(source, GgufModel):
            packed = GgufTensors(source.file, self._state)
            return packed, packed.recipes
        if isinstance(source, DrawnModel):
            self._drawn = Drawn(model, self._state, self._ties, source.seed)
            return self._drawn, recipes(self._drawn.names, model, self._state)
        assert isinstance(source, Checkpoint)
        nested = Nested(model, source)
        self._outer, self._stand = nested.outer, Stand(model.config, nested.state)
        if source.to_merge is not None:
            self._adapted = Adapted(source.to_merge, self.names, nested.outer, set(nested.state))
        return source.tensors, nested.recipes(source.tensors.names)

    def _named(self, name: str) -> list[str]:
        """Those of a parameter's names that the source has tensors for."""
        names = self._ties.get(name, (name,))
        return [x for x in names if x in self._recipes]

    def _made(self, name: str) -> Tensor:
        made = self._recipes[name].made(self._tensors.read, self._stand)
        value = made[self._outer(name)]
        return value if self._adapted is None else self._adapted.merged(name, value)

    def _rounded(self, name: str, shown: str, value: Tensor) -> Tensor:
        shape = self.shapes[name]
        if not self._state[name].is_floating_point():
            if tuple(value.shape) != shape:
                raise CheckpointError(
                    f"tensor {shown!r} has shape {tuple(value.shape)}, the config asks for {shape}."
                )
            return value.contiguous()
        kept = self._state[name].dtype is torch.float32  # in any model, such as a router's weights
        return deployed(shown, value, shape, "float32" if kept else self.dtype)

    def _check_complete(self) -> None:
        """Refuses a source that lacks a parameter, or a file with some of it."""
        used = set()
        for name in self.names:
            if name in self._computed:
                continue
            stored = self._named(name)
            if not stored:
                raise CheckpointError(
                    f"{self.source.path}: the model's parameter {name!r} is missing: no tensor of "
                    f"the source becomes it. Save the model again, whole."
                )
            used |= {self._tensors.names[part] for x in stored for part in self._recipes[x].names}
        locator = self.source.locator if isinstance(self.source, Checkpoint) else None
        for file in sorted(used) if locator is not None else ():
            if locator is not None and locator.find(file) is None:
                raise CheckpointError(
                    f"{locator}: the file {file} is missing, which has weights of this model. "
                    f"Fetch it, or save the model again."
                )

"""A source opened as a model: what its layers share, and each of them by its number."""

import dataclasses
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, overload

from torch import Tensor

from rope_export.checkpoints.config import ATTENTION_KINDS, Read, layer_kinds, select, spec_of
from rope_export.checkpoints.files import WeightFiles
from rope_export.checkpoints.integers import Integers
from rope_export.checkpoints.locators import Locator
from rope_export.errors import SpecError
from rope_export.spec import AttentionSpec, DType


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One attention layer of a source: its facts, and a way to its weights.

    index: of the layer, from 0. facts: what a manifest records of the source: its kind, layer,
    seed, the config's hash, the names of the files that were read, and notes.
    path: of the source, to find it again when the artifact is verified.
    names: full name in the source of each tensor of the spec.
    weights: reads the tensors of the spec, rounded to its dtype. weight: one of them by its name.
    locator, files: of a checkpoint, the way to its files and those that hold its weights.
    notes: what a user should know of how the source was read, a sentence each.
    adapter: folder or hub id of the adapter that is merged into the weights, if any.
    forms: how the source stores those tensors that it does not store as plain numbers: the
    quant_method of its config, or "gguf" and the type of its blocks.
    integers: reads those tensors that the source stores as integers with scales.
    """

    spec: AttentionSpec
    facts: dict[str, Any]
    path: str
    names: dict[str, str]
    weights: Callable[[], dict[str, Tensor]]
    weight: Callable[[str], Tensor]
    index: int = 0
    locator: Locator | None = None
    files: WeightFiles | None = None
    notes: tuple[str, ...] = ()
    adapter: str | None = None
    forms: dict[str, str] = field(default_factory=dict)
    integers: Callable[[], dict[str, Integers]] = dict


class Model(ABC):
    """A source opened as a model. Config, index and names are read once for all of its layers.

    kind: "checkpoint", "gguf" or "drawn". path: of the source. config: its contents, as in the
    file. part: key of the inner config that describes the layers, where the caller named one.
    dtype: what weights are rounded to. adapter: folder or hub id of the adapter that is merged.
    """

    kind: ClassVar[str]
    adapter: str | None = None

    def __init__(self, path: str, config: dict[str, Any], part: str | None, dtype: DType) -> None:
        self.path, self.config, self.part, self.dtype = path, config, part, dtype

    @abstractmethod
    def layer(self, index: int = 0) -> Layer:
        """One attention layer.

        Raises: SpecError for a number that the model does not have, a layer that does not attend
            and a feature that is not implemented; CheckpointError for tensors that are missing,
            damaged or not what the config describes.
        """

    @property
    def layers(self) -> "Layers":
        """Every layer, each opened when it is asked for."""
        return Layers(self)

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """The kind of each layer as the config names it: "full_attention", "sliding_attention",
        "chunked_attention", or another word for a layer that does not attend."""
        return layer_kinds(self.read)

    @property
    def shared(self) -> tuple[str, ...]:
        """Names of the tensors that are no layer's: the embedding, the last norm, the head."""
        return ()

    def beside(self, index: int) -> tuple[str, ...]:
        """Names of a layer's tensors that are not its attention's: its norms, its feed-forward; of
        a layer that does not attend, all of them."""
        return ()

    def tensor(self, name: str) -> Tensor:
        """Reads one tensor by its name in the source, in the source's dtype.

        Raises: SpecError for a name that the source does not have.
        """
        raise SpecError(f"tensor {name!r}: {self.path} is a config, which holds no tensors.")

    @cached_property
    def read(self) -> Read:
        """The part of the config that describes the layers.

        Raises: SpecError for a part or a model_type that is not supported.
        """
        return select(self.config, self.part)

    def _read_layer(self, index: int) -> tuple[Read, AttentionSpec]:
        """One layer's facts; what one layer reads of the config, or notes, is not another's."""
        read = self.read.anew()
        return read, dataclasses.replace(spec_of(read, index), dtype=self.dtype)

    def _in_block(self, index: int, block: str, names: Iterable[str]) -> list[str]:
        """Those of `names` that begin with a block's, without the tensors of the layer's spec."""
        attends = self.kinds[index] in ATTENTION_KINDS
        own = frozenset(self.layer(index).names.values() if attends else ())
        return sorted(name for name in names if name.startswith(block) and name not in own)

    def _facts(self, index: int) -> dict[str, Any]:
        facts = {"kind": self.kind, "layer": index, "config_sha256": self._config_hash}
        return facts if self.part is None else facts | {"part": self.part}

    @cached_property
    def _config_hash(self) -> str:
        text = json.dumps(self.config, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


class Layers(Sequence[Layer]):
    """The layers of a model in their order, each opened when it is asked for."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def __len__(self) -> int:
        return len(self._model.kinds)

    @overload
    def __getitem__(self, index: int) -> Layer: ...
    @overload
    def __getitem__(self, index: slice) -> list[Layer]: ...
    def __getitem__(self, index: int | slice) -> Layer | list[Layer]:
        chosen = range(len(self))[index]
        if isinstance(chosen, range):
            return [self._model.layer(at) for at in chosen]
        return self._model.layer(chosen)


def with_notes(facts: dict[str, Any], notes: Sequence[str]) -> dict[str, Any]:
    """The facts of a layer with the notes on how it was read, if there are any."""
    return facts | ({"notes": list(notes)} if notes else {})

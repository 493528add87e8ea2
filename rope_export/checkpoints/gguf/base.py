"""An architecture of GGUF files: its config, and how llama.cpp stores its attention's tensors."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from rope_export.checkpoints.gguf.metadata import Metadata

Change = Callable[[Tensor, Mapping[str, Any]], Tensor]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """How llama.cpp keeps one architecture. Each is a constant of a file of this folder.

    names: values of general.architecture. config: the config under transformers' names, from the
    metadata. modules: modules of a layer's attention, llama.cpp's name to transformers'. changes:
    what has to be undone of a module's tensors, by llama.cpp's name; rows alone may be moved
    where integers are to be kept.
    """

    names: tuple[str, ...]
    config: Callable[[Metadata], dict[str, Any]]
    modules: Mapping[str, str]
    changes: Mapping[str, Change]

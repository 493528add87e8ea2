"""A format of quantized checkpoints: what it stores, and the value that this stands for.

A weight's value is its format's definition: integers, less their zero, times the scale, in float32.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

from torch import Tensor

from rope_export.checkpoints.integers import Integers
from rope_export.errors import CheckpointError

Read = Callable[[str], Tensor]
Config = Mapping[str, Any]

WAY_OUT = (
    "Dequantize the model in transformers (from_pretrained, dequantize, save_pretrained) and "
    "export that folder."
)


class Format(ABC):
    """How one kind of checkpoint keeps its quantized weights.

    methods: the values of `quant_method` that it reads. tensors: what a quantized module has in
    place of, or beside, its `weight`; the first of them is there wherever a module is quantized.
    beside: tensors of a quantized module that have no part in its weight, such as the scale
    that activations are quantized by.
    """

    methods: ClassVar[tuple[str, ...]]
    tensors: ClassVar[tuple[str, ...]]
    beside: ClassVar[tuple[str, ...]] = ()

    def __init__(self, method: str, config: Config) -> None:
        """Checks the config.

        Raises: CheckpointError for a value that this format does not read.
        """
        self.method, self.config = method, config

    @classmethod
    def recognised(cls, names: Iterable[str]) -> Config | None:
        """The config of a checkpoint that has none but whose tensors tell its format."""
        return None

    @abstractmethod
    def quantizes(self, module: str) -> bool:
        """Whether the linear layer of this full name is quantized, by the config."""

    @abstractmethod
    def stored(self, module: str, read: Read, names: Iterable[str]) -> Integers | Tensor:
        """The weight of a quantized module: integers, or where they are none float32 (out, in).

        Raises: CheckpointError naming the module if its tensors are not what the config describes.
        """

    def not_quantized(self, module: str) -> CheckpointError:
        """The error for a weight that is stored as it is, though the config has it quantized."""
        return CheckpointError(
            f"{module!r}: the config says that it is quantized with {self.method}, but its weight "
            f"is stored as it is. List it among the modules that are left alone, or correct "
            f"quantization_config."
        )

    def refused(self, key: str, supported: str, module: str | None = None) -> CheckpointError:
        """The error for a value of the config that the format does not read."""
        where = "" if module is None else f" for {module!r}"
        return CheckpointError(
            f"quantization_config.{key}={self.config.get(key)!r}{where}: quant_method="
            f"{self.method!r} is read with {supported}. {WAY_OUT}"
        )

    def damaged(self, module: str, reason: str) -> CheckpointError:
        """The error for a module whose tensors do not fit together."""
        return CheckpointError(
            f"{module!r}: its {self.method} tensors do not fit together: {reason}. Fetch the "
            f"checkpoint again."
        )


def excluded(module: str, patterns: Iterable[str] | None) -> bool:
    """Whether one of the patterns means the module, by the rule of transformers: it matches, as a
    regular expression, from the start up to the end of a name between dots, or ends the name.

    Source: transformers, quantizers/quantizers_utils.py, should_convert_module.
    """
    return any(
        re.match(rf"(?:{pattern})(?:(?<=\.)|(?=\.|$))", module) or module.endswith(pattern)
        for pattern in patterns or ()
    )

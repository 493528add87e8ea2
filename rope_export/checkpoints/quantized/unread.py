"""Methods whose weights are not read; layers that they leave alone are."""

from collections.abc import Iterable
from typing import ClassVar

from torch import Tensor

from rope_export.checkpoints.integers import Integers
from rope_export.checkpoints.quantized.base import WAY_OUT, Config, Format, Read, excluded
from rope_export.errors import CheckpointError

LEFT_ALONE = (
    "modules_to_not_convert",
    "llm_int8_skip_modules",
    "ignore",
    "exclude",
    "exclude_modules",
    "ignored_layers",
    "block_name_to_skip",
)
"""Keys under which configs list the modules that are not quantized."""


class Unread(Format):
    """A method whose quantized weights are not read; modules that its config leaves alone are."""

    methods: ClassVar[tuple[str, ...]] = ()
    tensors: ClassVar[tuple[str, ...]] = ()

    def __init__(self, method: str, config: Config) -> None:
        super().__init__(method, config)
        lists = [config.get(key) for key in LEFT_ALONE]
        self.patterns = [pattern for names in lists if isinstance(names, list) for pattern in names]

    def quantizes(self, module: str) -> bool:
        return not excluded(module, [str(pattern).removeprefix("re:") for pattern in self.patterns])

    def stored(self, module: str, read: Read, names: Iterable[str]) -> Integers | Tensor:
        raise self.not_quantized(module)

    def not_quantized(self, module: str) -> CheckpointError:
        return CheckpointError(
            f"{module!r}: its weight is quantized with quant_method={self.method!r}, which is not "
            f"read; gptq, awq, compressed-tensors, fp8 and fbgemm_fp8 are. {WAY_OUT}"
        )

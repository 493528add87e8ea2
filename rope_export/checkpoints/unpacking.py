"""The tensors of a checkpoint, read as if it were not quantized."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from rope_export.checkpoints.integers import Integers
from rope_export.checkpoints.layout import TensorLayout
from rope_export.checkpoints.quantized.base import Format, Read
from rope_export.checkpoints.quantized.known import every_format
from rope_export.checkpoints.quantized.unread import Unread
from rope_export.errors import CheckpointError
from rope_export.spec import AttentionSpec

KEYS = ("quantization_config", "compression_config")
"""Config keys of the quantization settings; the second in older files."""
BESIDE = {
    "qweight": {"quantize_config.json": "gptq", "quant_config.json": "awq"},
    "weight_scale": {"hf_quant_config.json": "modelopt"},
}
"""Files of quantization settings that older writers put beside config.json, and the method that
writes them, by a tensor that their quantized modules have."""


class Finds(Protocol):
    """Finds a checkpoint's files by name."""

    def find(self, name: str) -> Path | None: ...


class Unpacking:
    """The tensors of a checkpoint, quantized modules under the name of their weight.

    names: file of each tensor. format: how the quantized ones are kept, if any are.
    """

    def __init__(self, read: Read, files: Mapping[str, str], format: Format | None = None) -> None:
        self._read, self._files, self.format = read, files, format
        self.names = dict(files)
        self.modules: set[str] = set()
        if format is None or not format.tensors:
            return
        suffix = f".{format.tensors[0]}"
        self.modules = {name.removesuffix(suffix) for name in files if name.endswith(suffix)}
        for module in self.modules:
            file = self.names[module + suffix]
            for tensor in (*format.tensors, *format.beside):
                self.names.pop(f"{module}.{tensor}", None)
            self.names.setdefault(f"{module}.weight", file)

    def read(self, name: str) -> Tensor:
        """A tensor; a quantized weight as the float32 that it stands for.

        Raises: CheckpointError where the config and the tensors contradict each other.
        """
        stored = self._stored(name)
        return stored.weight() if isinstance(stored, Integers) else stored

    def integers(self, name: str) -> Integers | None:
        """A weight as the checkpoint keeps it, where it keeps integers."""
        if name.removesuffix(".weight") not in self.modules:
            return None
        stored = self._stored(name)
        return stored if isinstance(stored, Integers) else None

    def form(self, name: str) -> str | None:
        """The quant_method that a tensor is kept by, or nothing if it is kept as its numbers."""
        kept = self.format is not None and name.removesuffix(".weight") in self.modules
        return self.format.method if kept and self.format is not None else None

    def behind(self, name: str) -> list[str]:
        """The tensors of the checkpoint that a tensor is made of."""
        module = name.removesuffix(".weight")
        if self.format is None or module not in self.modules:
            return [name]
        names = (f"{module}.{part}" for part in ("weight", *self.format.tensors))
        return [name for name in names if name in self._files]

    def idle(self, name: str) -> bool:
        """Whether a tensor that the config does not mention changes nothing: writers of quantized
        layers add a bias of zeros to those that have none."""
        module, _, tensor = name.rpartition(".")
        return tensor == "bias" and module in self.modules and not self._read(name).any()

    @contextmanager
    def named(self) -> Iterator[None]:
        """Errors about the tensors with the method whose tensors are not known."""
        try:
            yield
        except CheckpointError as error:
            if not isinstance(self.format, Unread):
                raise
            raise CheckpointError(
                f"quant_method={self.format.method!r} is not read: {error}"
            ) from error

    def _stored(self, name: str) -> Integers | Tensor:
        module, _, tensor = name.rpartition(".")
        if self.format is None or tensor != "weight":
            return self._read(name)
        if module not in self.modules:
            plain = self._read(name)
            if plain.ndim == 2 and self.format.quantizes(module):
                raise self.format.not_quantized(module)
            return plain
        if not self.format.quantizes(module):
            raise CheckpointError(
                f"{module!r}: its weight is quantized with {self.format.method}, but the config "
                f"says that this module is left alone. Correct quantization_config."
            )
        return self.format.stored(module, self._read, self._files)


def unpacked_tensors(
    config: Mapping[str, Any], locator: Finds, files: Mapping[str, str], read: Read
) -> Unpacking:
    """The checkpoint's tensors, unpacked by the format that its config, the files beside it, or the
    tensors' names tell.

    files: file of each tensor. read: reads one as it lies there.
    Raises: CheckpointError for a format that is not read.
    """
    settings = _config(config) or _beside(locator, files)
    if settings is None:
        settings = next(filter(None, (kind.recognised(files) for kind in every_format())), None)
    return Unpacking(read, files, None if settings is None else format_of(settings))


def refuse_unread(
    config: Mapping[str, Any], layout: TensorLayout, layer: int, spec: AttentionSpec
) -> None:
    """Refuses a layer of a config without a checkpoint that could not be read from a checkpoint.

    The weights of such a config are drawn, and nothing is unpacked.

    Raises: CheckpointError for a method that is not read and does not leave the layer alone.
    """
    settings = _config(config)
    if settings is None:
        return
    format = format_of(settings)
    for name, piece in layout.pieces(spec).items():
        module = f"model.{layout.path(layer)}{piece.name}".removesuffix(".weight")
        linear = len(spec.weight_shapes[name]) == 2 and name.endswith(".weight")
        if isinstance(format, Unread) and linear and format.quantizes(module):
            raise format.not_quantized(module)


def format_of(config: Mapping[str, Any]) -> Format:
    """The format of a quantization config.

    Raises: CheckpointError for settings that the format does not read.
    """
    method = config.get("quant_method")
    if not isinstance(method, str):
        method = "bitsandbytes" if "load_in_4bit" in config or "load_in_8bit" in config else None
    if method is None:
        raise CheckpointError(
            f"quantization_config={dict(config)!r}: it has no quant_method, so its weights cannot "
            f"be told."
        )
    format_class = next((kind for kind in every_format() if method in kind.methods), Unread)
    return format_class(method, config)


def _config(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The quantization settings of a config, or of one of its parts."""
    parts = [config, *(value for value in config.values() if isinstance(value, Mapping))]
    for part in parts:
        for key in KEYS:
            settings = part.get(key)
            if isinstance(settings, Mapping) and settings:
                defaults = {"quant_method": "compressed-tensors"} if key != KEYS[0] else {}
                return {**defaults, **settings}
    return None


def _beside(locator: Finds, files: Mapping[str, str]) -> Mapping[str, Any] | None:
    """The quantization settings of a file beside config.json, as older writers wrote them."""
    ends = {name.rpartition(".")[2] for name in files}
    for tensor, methods in BESIDE.items():
        for name, method in methods.items() if tensor in ends else ():
            path = locator.find(name)
            if path is None:
                continue
            try:
                settings = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise CheckpointError(f"{path}: cannot be read ({error}).") from error
            if isinstance(settings, dict):
                return {"quant_method": method, **settings}
    return None

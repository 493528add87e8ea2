"""GGUF files: the config in their metadata, and weights as llama.cpp keeps them.

A file is read as the checkpoint it was converted from: the architecture's own file of this folder
gives the config under transformers' names, and each tensor is found under the name it has there.
Source: ggml-org/ggml, docs/gguf.md; ggml-org/llama.cpp, convert_hf_to_gguf.py.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from rope_export.checkpoints.gguf.blocks import integers_of
from rope_export.checkpoints.gguf.known import every_architecture
from rope_export.checkpoints.gguf.metadata import Metadata
from rope_export.checkpoints.integers import Integers
from rope_export.errors import CheckpointError, SpecError, extra

if TYPE_CHECKING:
    from gguf import GGUFReader, ReaderTensor


class GgufFile:
    """An open GGUF file.

    config: as transformers has it. names: each tensor of an attention by transformers' name, with
    llama.cpp's.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reader = _open(path)
        self.tensors: dict[str, ReaderTensor] = {
            tensor.name: tensor for tensor in self._reader.tensors
        }
        fields = {
            name: field.contents()
            for name, field in self._reader.fields.items()
            if not name.startswith("tokenizer.")
        }
        self.facts = Metadata(fields, self._factors(), frozenset(self.tensors))
        name = fields.get("general.architecture")
        architectures = every_architecture()
        if name not in architectures:
            raise SpecError(
                f"{path}: general.architecture={name!r} is not read; supported: "
                f"{', '.join(sorted(architectures))}. Export the checkpoint that it was converted "
                f"from."
            )
        self.architecture = architectures[name]
        self.config = self.architecture.config(self.facts)
        self.facts.refuse_unread(path)
        self.names = self._names()

    def read(self, name: str) -> Tensor:
        """A tensor by transformers' name, float32: its blocks' values by ggml's definition.

        Raises: CheckpointError for a kind of block that the gguf package does not know.
        """
        return self.value(self.names[name])

    def value(self, name: str) -> Tensor:
        """A tensor by llama.cpp's name; see `read`."""
        from gguf.quants import dequantize

        tensor = self.tensors[name]
        try:
            value = dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as error:
            raise CheckpointError(
                f"{self.path}: tensor {tensor.name!r} is of type {tensor.tensor_type.name}, which "
                f"the gguf package does not dequantize."
            ) from error
        flat = torch.from_numpy(np.array(value, np.float32))
        return self._changed(tensor.name, flat.reshape([int(size) for size in tensor.shape][::-1]))

    def integers(self, name: str) -> Integers | None:
        """A weight as the file keeps it, where its blocks are integers with a scale."""
        tensor = self.tensors[self.names[name]]
        integers = integers_of(tensor.data, tensor.tensor_type.name)
        if integers is None:
            return None
        return integers.taken(lambda rows: self._changed(tensor.name, rows))

    def form(self, name: str) -> str | None:
        """The type of a tensor's blocks, as ggml calls it; nothing for plain numbers."""
        return self.form_of(self.names[name])

    def form_of(self, name: str) -> str | None:
        """The same by llama.cpp's name."""
        kind = str(self.tensors[name].tensor_type.name)
        return None if kind in ("F32", "F16", "BF16") else f"gguf {kind}"

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding."""
        return int(self.tensors["token_embd.weight"].shape[1])

    def _changed(self, name: str, tensor: Tensor) -> Tensor:
        module = name.split(".")[-2]
        change = self.architecture.changes.get(module)
        return tensor if change is None else change(tensor, self.config)

    def _names(self) -> dict[str, str]:
        """Names of the attention's tensors, and of all else as they are."""
        names = {}
        for name in self.tensors:
            parts = name.split(".")
            if parts[0] != "blk" or not parts[2].startswith("attn_"):
                names[name] = name
                continue
            module = self.architecture.modules.get(parts[2])
            if module is not None:
                names[f"model.layers.{parts[1]}.{module}.{parts[3]}"] = name
            elif parts[2] not in ("attn_norm", "attn_post_norm"):
                names[f"model.layers.{parts[1]}.self_attn.{parts[2]}"] = name  # refused as unknown
        return names

    def _factors(self) -> dict[str, np.ndarray]:
        """Divisors of the frequencies, which some files keep as tensors."""
        return {
            name.removesuffix(".weight"): np.array(tensor.data, np.float32).reshape(-1)
            for name, tensor in self.tensors.items()
            if name.startswith("rope_")
        }


def _open(path: Path) -> "GGUFReader":
    with extra("gguf", f"reading {path}"):
        from gguf import GGUFReader
    try:
        return GGUFReader(path)
    except (ValueError, OSError, IndexError, KeyError, OverflowError) as error:
        raise CheckpointError(
            f"{path}: is damaged, truncated or not a GGUF file ({error}). Fetch it again."
        ) from error

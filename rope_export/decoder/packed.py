"""A GGUF file's tensors by the names of transformers' parameters."""

from collections.abc import Iterable

from torch import Tensor

from rope_export.checkpoints.gguf.file import GgufFile
from rope_export.decoder.naming import Recipe


class GgufTensors:
    """The tensors of a GGUF file under llama.cpp's names; values as transformers has them.

    names: each with the name of the file. recipes: of each parameter that the file has.
    """

    def __init__(self, file: GgufFile, parameters: Iterable[str]) -> None:
        from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

        arch = next(
            key for key, name in MODEL_ARCH_NAMES.items() if name == file.facts.architecture
        )
        self.file = file
        self.names = dict.fromkeys(file.tensors, file.path.name)
        known = get_tensor_name_map(arch, file.config["num_hidden_layers"])
        self.recipes = {}
        for name in parameters:
            stored = file.names.get(name)
            if stored is None:
                stored = known.get_name(name, try_suffixes=(".weight", ".bias"))
            if stored in file.tensors:
                self.recipes[name] = Recipe(first=name, sources={stored: [stored]})

    def read(self, name: str) -> Tensor:
        return self.file.value(name)

    def form(self, name: str) -> str | None:
        return self.file.form_of(name)

    def behind(self, name: str) -> list[str]:
        return [name]

"""The reader of configs that `AttentionSpec.from_hf` calls; the layer above specs registers it."""

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rope_export.spec.attention import AttentionSpec


class ConfigReader(Protocol):
    """Reads the facts of one layer from a Hugging Face config; see `AttentionSpec.from_hf`."""

    def __call__(self, config: Any, *, layer: int, part: str | None) -> "AttentionSpec": ...


_READERS: list[ConfigReader] = []


def use_reader(reader: ConfigReader) -> None:
    """Makes `AttentionSpec.from_hf` read with `reader`."""
    _READERS[:] = [reader]


def config_reader() -> ConfigReader:
    """The registered reader; the package registers it when it is imported."""
    return _READERS[0]

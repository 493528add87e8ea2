"""transformers' config object for every kind of source."""

from pathlib import Path
from typing import Any

from rope_export.checkpoints import Model
from rope_export.checkpoints.gguf.model import GgufModel
from rope_export.errors import SpecError
from rope_export.reading.folders import config_folder
from rope_export.reading.models import Unread, configured, quiet, reason


def config_of(source: Model) -> Any:
    """The config of a source as transformers' object; code of its own is never run.

    Raises: SpecError if transformers does not know the model.
    """
    try:
        with quiet():
            if isinstance(source, GgufModel):
                return _of_gguf(source)
            with config_folder(source.config) as folder:
                return configured(folder)
    except Unread as error:
        raise SpecError(
            f"{source.path}: {error}; whole decoders are made of its models."
        ) from error


def _of_gguf(source: GgufModel) -> Any:
    """What transformers reads of the file, and over it what our reading has of the attention:
    transformers has heads of a fixed width for some architectures."""
    from transformers import AutoConfig
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    path = Path(source.path)
    try:
        facts = load_gguf_checkpoint(str(path), return_tensors=False)["config"]
        rest = {key: x for key, x in facts.items() if key not in ("rope_theta", "rope_scaling")}
        config = {**rest, **source.config, "vocab_size": source.file.vocabulary}
        return AutoConfig.for_model(**config)
    except Exception as error:
        raise Unread(f"transformers cannot read its metadata ({reason(error)})") from error

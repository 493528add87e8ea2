"""generation_config.json: the source's own, or what its config says of generating."""

from typing import Any

from rope_export.checkpoints.model import Model
from rope_export.decoder.companions.source_files import locator_of, read_json
from rope_export.decoder.companions.text_config import TOKENS

NAME = "generation_config.json"


def generation_config(source: Model, config: dict[str, Any]) -> dict[str, Any]:
    """config: of the exported decoder.

    Raises: CheckpointError for a file that holds no JSON object.
    """
    locator = locator_of(source)
    path = None if locator is None else locator.find(NAME)
    if path is not None:
        return read_json(path)
    tokens = {name: config[name] for name in TOKENS if config.get(name) is not None}
    return {"_from_model_config": True, **tokens}

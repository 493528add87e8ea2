"""All files beside a decoder's model, and why one of them is not there."""

import json
from dataclasses import dataclass
from typing import Any

from rope_export.checkpoints.model import Model
from rope_export.decoder.companions.genai import NoConfig, genai_config
from rope_export.decoder.companions.generation import generation_config
from rope_export.decoder.companions.text_config import client_config
from rope_export.decoder.companions.tokenizer import NoTokenizer, tokenizer_files
from rope_export.interface import Interface


@dataclass(frozen=True, kw_only=True)
class Companions:
    """files: the contents of each file by its name. notes: why others are not there, a sentence
    each."""

    files: dict[str, bytes]
    notes: tuple[str, ...]


def companions(source: Model, config: Any, interface: Interface) -> Companions:
    """The files that optimum, transformers and onnxruntime-genai look for beside a decoder.

    source: the model that is exported. config: transformers' config object of it. interface: of
    the decoder.
    """
    notes = []
    try:
        tokenizer = tokenizer_files(source)
    except NoTokenizer as error:
        tokenizer = {}
        notes.append(
            f"no tokenizer beside the model ({error}): it takes and gives ids of tokens alone."
        )
    facts = client_config(source, config, tokenizer)
    generation = generation_config(source, facts)
    files = {"config.json": _written(facts), "generation_config.json": _written(generation)}
    try:
        files["genai_config.json"] = _written(genai_config(facts, generation, interface))
    except NoConfig as error:
        notes.append(f"no genai_config.json: {error}.")
    return Companions(files=files | tokenizer, notes=tuple(notes))


def _written(values: dict[str, Any]) -> bytes:
    """The contents of a JSON file, the same for the same values."""
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()

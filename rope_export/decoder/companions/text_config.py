"""config.json as transformers reads it: of the text decoder alone, with the weights as they are."""

import json
from collections.abc import Mapping
from typing import Any

from rope_export.checkpoints.gguf.model import GgufModel
from rope_export.checkpoints.model import Model

OF_THE_SOURCE = ("quantization_config", "transformers_weights", "auto_map", "_name_or_path")
"""Keys that speak of the source's own files."""
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def client_config(source: Model, config: Any, tokenizer: Mapping[str, bytes]) -> dict[str, Any]:
    """The config of the exported decoder.

    Of a source that is a text decoder its own, of another that of the text decoder inside.
    config: transformers' config object of the source. tokenizer: files of the tokenizer.
    """
    text = config.get_text_config(decoder=True)
    if isinstance(source, GgufModel):
        facts = _plain(text) | _token_ids(tokenizer)
    elif text is config and source.part is None:
        facts = dict(source.config)
    else:
        outer = {name: source.config.get(name) for name in TOKENS}
        facts = _plain(text) | {name: value for name, value in outer.items() if value is not None}
        if hasattr(config, "tie_word_embeddings"):
            facts["tie_word_embeddings"] = config.tie_word_embeddings
        facts["architectures"] = _causal_class(text)
    return {name: value for name, value in facts.items() if name not in OF_THE_SOURCE}


def _plain(config: Any) -> dict[str, Any]:
    """A config object as its file has it."""
    return dict(json.loads(config.to_json_string(use_diff=True)))


def _causal_class(text: Any) -> list[str]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(text.model_type)
    return [] if name is None else [name]


def _token_ids(tokenizer: Mapping[str, bytes]) -> dict[str, int]:
    """The ids of the special tokens that a GGUF file names, by the keys of a config."""
    if not tokenizer:
        return {}
    settings = json.loads(tokenizer["tokenizer_config.json"])
    entries = json.loads(tokenizer["tokenizer.json"])["added_tokens"]
    ids = {entry["content"]: entry["id"] for entry in entries}
    named = {f"{kind}_token_id": settings.get(f"{kind}_token") for kind in ("bos", "eos", "pad")}
    return {key: ids[token] for key, token in named.items() if token in ids}

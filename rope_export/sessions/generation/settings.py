"""What the files beside a decoder state of its texts: which tokens end them, and how it is usually
run."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rope_export.artifacts import contents
from rope_export.errors import InputError
from rope_export.typed_json import brief, parse

GENERATION, CONFIG = "generation_config.json", "config.json"

END, PAD = "eos_token_id", "pad_token_id"

NO_CHOICE = {
    *("bos_token_id", "decoder_start_token_id", "transformers_version", "use_cache"),
    *("output_attentions", "output_hidden_states", "output_scores", "output_logits"),
    "return_dict_in_generate",
}
"""Keys of a generation config that change no choice of a token here."""

OFF: tuple[object, ...] = (None, [], False)
"""Values that ask for nothing; False stands for 0 too."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """ends: tokens that end a text. ignored: keys of the generation config that nothing here
    follows."""

    ends: frozenset[int]
    ignored: tuple[str, ...] = ()


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON file beside a model; empty where there is none.

    Raises: ArtifactError if it cannot be read, or holds no object.
    """
    path = folder / name
    return parse(contents.read(path, contents.LARGEST_JSON), path) if path.exists() else {}


def settings_of(folder: Path) -> Settings:
    """The settings in a decoder's folder: those of its generation config, else of its config.

    Raises: InputError for tokens that are none.
    """
    generation = read_json(folder, GENERATION)
    config = read_json(folder, CONFIG)
    text = config.get("text_config")
    places: list[tuple[str, Mapping[str, Any]]] = [(GENERATION, generation), (CONFIG, config)]
    if isinstance(text, dict):
        places.append((CONFIG, text))
    ends: frozenset[int] = frozenset()
    for name, facts in places:
        if facts.get(END) is not None:
            ends = _tokens(folder / name, facts[END])
            break
    ignored = tuple(
        key
        for key, value in generation.items()
        if key not in {END, PAD, *NO_CHOICE} and not key.startswith("_") and value not in OFF
    )
    return Settings(ends=ends, ignored=ignored)


def _tokens(where: Path, value: object) -> frozenset[int]:
    tokens = value if isinstance(value, list) else [value]
    if not all(isinstance(token, int) and not isinstance(token, bool) for token in tokens):
        raise InputError(f"{where}: {END}={brief(value)}; it must be a token's number or a list.")
    return frozenset(tokens)

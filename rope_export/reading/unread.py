"""Config keys that transformers reads on the way to the attention and our readers do not."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rope_export.checkpoints import Layer
from rope_export.checkpoints.config import Read, read_config, select, spec_of
from rope_export.checkpoints.keys import ELSEWHERE, HARMLESS_KEYS, is_off, short
from rope_export.errors import SpecError
from rope_export.reading.folders import config_folder
from rope_export.reading.models import configured, quiet
from rope_export.reading.recorder import Reads, recorded, run_on_meta
from rope_export.reading.skeleton import Skeleton, skeleton_of
from rope_export.reading.verdict import installed

_ASKED: dict[tuple[Any, ...], dict[str, Any]] = {}


def only_theirs(skeleton: Skeleton, reads: Reads, read: Read) -> dict[str, Any]:
    """Keys that only transformers read, and the config objects they are of. Dropout, which does
    nothing outside of training, and keys of other parts of the model are left out."""
    return {
        key: config
        for key, config in reads.of(skeleton).items()
        if key not in read.facts.read and not ELSEWHERE.search(key)
    }


def keys_unread(skeleton: Skeleton, reads: Reads, read: Read) -> dict[str, Any]:
    """The keys of `only_theirs` that the file gives another value than their default."""
    unread = {}
    values = {**read.unread, **read.facts.facts}
    for key, config in only_theirs(skeleton, reads, read).items():
        if key not in values or key in HARMLESS_KEYS | read.kind.ignored:
            continue
        default = _default(config, key)
        if values[key] != default and not (default is ... and is_off(values[key])):
            unread[key] = values[key]
    return unread


def _default(config: Any, key: str) -> Any:
    """What the config class has for a key that a file leaves out; `...` where it has none."""
    for item in dataclasses.fields(config):
        if item.name == key and item.default_factory is not dataclasses.MISSING:
            return item.default_factory()
        if item.name == key and item.default is not dataclasses.MISSING:
            return item.default
    return getattr(type(config), key, ...)


def sentence(model_type: str, key: str, value: Any) -> str:
    """What is wrong with an unread key, in one line."""
    return (
        f"config key {key}={short(value)} is not supported for model_type={model_type!r}: "
        f"{installed()} reads it for this attention, and it is not implemented here."
    )


def refuse_unread(source: Layer) -> None:
    """Where transformers is installed, its code is built for the config, on meta, and watched; once
    in a process for each config and layer.

    Raises: SpecError for a config key that it reads for this attention and we do not, with another
        value than its default. Nothing where transformers cannot be asked.
    """
    file = Path(source.path)
    if source.locator is not None:
        file = source.locator.find("config.json") or file
    if installed() is None or file.suffix != ".json":
        return
    facts, layer, part = read_config(file), source.facts["layer"], source.facts.get("part")
    at = (source.facts["config_sha256"], layer, part)
    if at not in _ASKED:
        _ASKED[at] = _asked(facts, layer, part)
    for name, value in sorted(_ASKED[at].items()):
        raise SpecError(sentence(str(facts.get("model_type")), name, value))


def _asked(facts: Mapping[str, Any], layer: int, part: str | None) -> dict[str, Any]:
    facts = {k: v for k, v in facts.items() if k != "quantization_config"}
    read = select(facts, part)
    spec = spec_of(read, layer)
    try:
        with quiet(), config_folder(facts) as folder, recorded() as reads:
            skeleton = skeleton_of(configured(folder), read, spec, layer)
            run_on_meta(skeleton, tokens=8)
            return keys_unread(skeleton, reads, read)
    except Exception:  # verify tells why transformers cannot be asked
        return {}

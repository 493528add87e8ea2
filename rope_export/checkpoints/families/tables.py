"""Tables of transformers' code for each family: its config's defaults, and the keys it reads."""

import json
from functools import cache
from pathlib import Path
from typing import Any

DEFAULTS = Path(__file__).with_name("defaults.json")
"""What transformers' config classes fill in for keys that a config.json leaves out, by model_type;
`python -m scripts.family_defaults` writes it."""


READS = Path(__file__).with_name("reads.json")
"""Which keys of a config transformers' code reads on the way to an attention layer, by model_type;
`python -m scripts.family_reads` writes it."""


@cache
def class_defaults() -> dict[str, dict[str, Any]]:
    """The contents of `defaults.json`."""
    return json.loads(DEFAULTS.read_text(encoding="utf-8"))


@cache
def _reads() -> dict[str, dict[str, Any]]:
    return json.loads(READS.read_text(encoding="utf-8"))


def keys_read(model_type: str) -> dict[str, Any] | None:
    """The keys that transformers' code reads for the family, with the config class's defaults, "?"
    where it has none: "attention" by its attention and rotary modules and the masks, "around" by
    the rest on the way there; and "rope_by_kind", whether rope_parameters may differ by the kind of
    layer. None where transformers has no such family."""
    return _reads().get(model_type)

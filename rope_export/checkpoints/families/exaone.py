"""EXAONE 4 and its kin: head norms, and no rotation on layers that see everything."""

from collections.abc import Mapping
from typing import Any

from rope_export.checkpoints.families.base import Config, Family
from rope_export.checkpoints.families.reading import head_norms
from rope_export.errors import SpecError


def _kinds(config: Config) -> list[str] | None:
    """layer_types, or a pattern: a period, or letters such as LLLG for local and global."""
    pattern = config.get("sliding_window_pattern")
    if config.get("layer_types") is not None:
        return config["layer_types"]
    if config.get("sliding_window") is None:
        return None
    layers = config["num_hidden_layers"]
    if isinstance(pattern, str):
        pattern = len(pattern)
    if not isinstance(pattern, int) or pattern < 0:
        raise SpecError(
            f"config key sliding_window_pattern={pattern!r}: it must be a whole number or letters."
        )
    return [
        "sliding_attention" if pattern and (at + 1) % pattern else "full_attention"
        for at in range(layers)
    ]


def _rope(config: Config, layer: int) -> Mapping[str, Any] | None:
    kinds = _kinds(config)
    slides = kinds is not None and kinds[layer] == "sliding_attention"
    return {} if config.get("sliding_window") is None or slides else None


EXAONE = tuple(
    Family(model_type=name, attention=head_norms(), kinds=_kinds, rope=_rope)
    for name in ("exaone4", "exaone_moe", "kolibri1")
)

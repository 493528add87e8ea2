"""The reader behind `AttentionSpec.from_hf`: that of `checkpoints`, loaded when it is first used.

Specs lie below the code that reads configs, so that neither it nor torch is loaded with them.
"""

from typing import Any

from rope_export.errors import extra
from rope_export.spec.attention import AttentionSpec
from rope_export.spec.reader import use_reader


def read_config(config: Any, *, layer: int, part: str | None) -> AttentionSpec:
    """The facts of one layer; see `AttentionSpec.from_hf`."""
    with extra("export", "reading a config"):
        from rope_export.checkpoints.config import read_spec

    return read_spec(config, layer=layer, part=part)


use_reader(read_config)

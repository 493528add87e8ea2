"""ERNIE 4.5: interleaved pairs; its vision model rotates them by height, width and time."""

from collections.abc import Mapping
from typing import Any

from rope_export.checkpoints.families.base import Config, Family
from rope_export.checkpoints.families.reading import bias_flag


def _axes(config: Config, layer: int) -> Mapping[str, Any]:
    """Pairs rotate with height and width in alternation, the slow ones with time."""
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    height, _, time = parameters.get("mrope_section") or (22, 22, 20)
    return {
        "rope_type": "default",
        "type": None,
        "mrope_section": None,
        "pair_axes": (1, 2) * height + (0,) * time,
    }


ERNIE = tuple(
    Family(model_type=name, attention=bias_flag("use_bias"), layout="interleaved")
    for name in ("ernie4_5", "ernie4_5_moe")
)

ERNIE_VL = Family(
    model_type="ernie4_5_vl_moe_text",
    attention=bias_flag("use_bias"),
    layout="interleaved",
    rope=_axes,
)

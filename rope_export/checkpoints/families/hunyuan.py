"""HunYuan and nanochat: norms that come after the rotation; HunYuan's alpha on the base."""

from collections.abc import Mapping
from typing import Any

from rope_export.checkpoints.families.base import Config, Facts, Family
from rope_export.checkpoints.families.reading import biases, eps, qk_norms
from rope_export.checkpoints.layout import TensorLayout


def _after(config: Config, layer: int) -> Facts:
    facts = biases("qkvo", config.flag("attention_bias")) | qk_norms(eps(config))
    return facts | {"norm_after_rope": True}


def _weightless(config: Config, layer: int) -> Facts:
    facts = biases("qkvo", config.flag("attention_bias")) | {"norm_after_rope": True}
    return facts | qk_norms(eps(config), weight=False)


def _alpha(config: Config, layer: int) -> Mapping[str, Any]:
    """What its configs call dynamic is a fixed base where there is an alpha."""
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    named = given.get("rope_type", given.get("type"))
    if named != "dynamic" or not given.get("alpha"):
        return {}
    left = {key: None for key in given if key not in ("rope_theta", "alpha")}
    return {**left, "rope_type": "alpha"}


HUNYUAN = tuple(
    Family(
        model_type=name,
        attention=_after,
        rope=_alpha,
        tensors=TensorLayout(modules={"q_norm": "query_layernorm", "k_norm": "key_layernorm"}),
    )
    for name in ("hunyuan_v1_dense", "hunyuan_v1_moe")
)

NANOCHAT = Family(
    model_type="nanochat",
    attention=_weightless,
    rope=lambda config, layer: {"clockwise": True},
)

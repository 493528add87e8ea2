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
    """The rope_type "dynamic" of HunYuan is a fixed base where there is an alpha."""
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope_type = parameters.get("rope_type", parameters.get("type"))
    if rope_type != "dynamic" or not parameters.get("alpha"):
        return {}
    unset = {key: None for key in parameters if key not in ("rope_theta", "alpha")}
    return {**unset, "rope_type": "alpha"}


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

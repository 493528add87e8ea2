"""Gemma: norms whose weights are stored about zero, softcap, two bases, shared key and value."""

from collections.abc import Callable, Mapping
from typing import Any

from rope_export.checkpoints.families.base import Config, Facts, Family
from rope_export.checkpoints.families.reading import (
    Kinds,
    biases,
    eps,
    every_full,
    qk_norms,
    scale_of,
)
from rope_export.checkpoints.layout import TensorLayout
from rope_export.errors import SpecError
from rope_export.spec import NormSpec


def _plain(config: Config, layer: int) -> Facts:
    return biases("qkvo", config.flag("attention_bias")) | {"causal": _causal(config)}


def _causal(config: Config) -> bool:
    """use_bidirectional_attention: true or false in Gemma 3, the parts that see all in Gemma 4."""
    value = config.get("use_bidirectional_attention")
    return not value if value is None or isinstance(value, bool) else value != "all"


def _capped(config: Config, layer: int) -> Facts:
    facts = _plain(config, layer) | scale_of("query_pre_attn_scalar", -0.5)(config, layer)
    cap = config.get("attn_logit_softcapping")
    return facts | ({} if cap is None else {"softcap": float(cap)})


def _both_sides(facts: Facts, config: Config, layer: int, kinds: Kinds, extra: int = 0) -> Facts:
    """Where a bidirectional layer slides, it reaches half of the window to either side.

    extra: slots beyond that half; the masks of Gemma 4 count the end of the window as within.
    """
    layer_types = kinds(config)
    config.get("sliding_window")
    if facts.get("causal", True) or not layer_types or layer_types[layer] != "sliding_attention":
        return facts
    reach = config.whole("sliding_window") // 2 + extra
    return facts | {"window": reach + 1, "window_after": reach}


def _gemma2(config: Config, layer: int) -> Facts:
    return _both_sides(_capped(config, layer), config, layer, every_full(2))


def _gemma3(config: Config, layer: int) -> Facts:
    facts = _capped(config, layer) | qk_norms(eps(config), offset=1.0)
    if "softcap" in facts:
        raise SpecError(
            f"config key attn_logit_softcapping={facts['softcap']}: Gemma 3 has the key and does "
            f"not apply it; supported: null."
        )
    return _both_sides(facts, config, layer, THREE)


def two_bases(kinds: Kinds, wide: float) -> Callable[[Config, int], Mapping[str, Any]]:
    """Older files have one rotation, which is that of full attention, whose base is `wide` where
    they give none; layers that slide rotate plainly, by rope_local_base_freq or 10000."""

    def rope(config: Config, layer: int) -> Mapping[str, Any]:
        parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
        base, local = config.get("rope_theta"), config.get("rope_local_base_freq")
        if any(isinstance(value, dict) for value in parameters.values()):
            return {}
        layer_types = kinds(config)
        if layer_types is not None and layer_types[layer] == "sliding_attention":
            plain = dict.fromkeys(parameters)
            return {**plain, "rope_type": "default", "rope_theta": local or 10_000.0}
        return {"rope_theta": parameters.get("rope_theta") or base or wide}

    return rope


def _shared_kv(config: Config, layer: int) -> None:
    """Refuses a layer whose keys and values are another layer's.

    Raises: SpecError naming the layer.
    """
    shared = config.get("num_kv_shared_layers") or 0
    if shared and layer >= config["num_hidden_layers"] - shared:
        raise SpecError(
            f"config key num_kv_shared_layers={shared}: layer {layer} takes keys and values from "
            f"an earlier layer, which one layer alone cannot; it is not implemented."
        )


def _gemma3n(config: Config, layer: int) -> Facts:
    _shared_kv(config, layer)
    facts = biases("qkvo", config.flag("attention_bias")) | qk_norms(eps(config))
    return facts | {"scale": 1.0, "v_norm": NormSpec(eps=eps(config), weight=False)}


def _gemma4(config: Config, layer: int) -> Facts:
    facts = _plain(config, layer) | _gemma3n(config, layer)
    kinds = FOUR(config)
    head_dim = config.get("global_head_dim", 512)
    kv_heads = config.get("num_global_key_value_heads")
    shares_kv = config.flag("attention_k_eq_v")
    if kinds is None or kinds[layer] != "full_attention":
        return _both_sides(facts, config, layer, FOUR, extra=1)
    config.get("head_dim")  # of the layers that slide
    if config.get("per_layer_config") is None:  # older files
        facts["head_dim"] = head_dim
        if shares_kv and kv_heads:
            facts["kv_heads"] = kv_heads
    return facts


def _key_for_value(config: Config, layer: int) -> TensorLayout:
    """Layers that see everything may take their values from the key projection."""
    kinds = FOUR(config)
    full = kinds is not None and kinds[layer] == "full_attention"
    same = config.get("attention_k_eq_v", config["model_type"] == "diffusion_gemma_text")
    return TensorLayout(modules={"v_proj": "k_proj"} if full and same else {})


THREE = every_full(6, "sliding_window_pattern")


def FOUR(config: Config) -> list[str] | None:
    """Every sixth layer sees everything, and so does the last."""
    kinds = every_full(6)(config)
    return kinds if not kinds else [*kinds[:-1], "full_attention"]


GEMMA = Family(model_type="gemma", attention=_plain)
GEMMA2 = tuple(
    Family(model_type=name, attention=_gemma2, kinds=every_full(2))
    for name in ("gemma2", "vaultgemma")
)
GEMMA3 = Family(
    model_type="gemma3_text", attention=_gemma3, kinds=THREE, rope=two_bases(THREE, 1e6)
)
GEMMA3N = Family(
    model_type="gemma3n_text",
    attention=_gemma3n,
    kinds=every_full(5),
    rope=two_bases(every_full(5), 1e6),
    ignored=frozenset({"activation_sparsity_pattern", "altup_coef_clip"}),
)
GEMMA4 = tuple(
    Family(model_type=name, attention=_gemma4, kinds=FOUR, tensors=_key_for_value)
    for name in ("gemma4_text", "gemma4_unified_text", "diffusion_gemma_text")
)

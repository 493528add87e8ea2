"""DINOv3 and its kin: patches rotate by their place in the image, class and register tokens not."""

from collections.abc import Mapping
from typing import Any

from rope_export.checkpoints.families.base import Config, Facts, Family
from rope_export.checkpoints.families.reading import eps, qk_norms
from rope_export.checkpoints.layout import COMMON_IGNORED, TensorLayout
from rope_export.errors import SpecError
from rope_export.rope.axial import halves

NAMES = {"q": "query_bias", "k": "key_bias", "v": "value_bias", "o": "proj_bias"}


def _attention(config: Config, layer: int) -> Facts:
    return {"causal": False, **{f"{part}_bias": config.flag(key) for part, key in NAMES.items()}}


def _masked_at_the_end(config: Config, layer: int) -> Facts:
    """Refuses the last blocks, which hide patches from queries by what was predicted so far."""
    masked = config.whole("num_blocks")
    if layer >= config.whole("num_hidden_layers") - masked:
        raise SpecError(
            f"config key num_blocks={masked}: layer {layer} is masked by predictions, which is not "
            f"implemented; layers before the last {masked} are."
        )
    return _attention(config, layer)


def _grouped_inside(config: Config, layer: int) -> Facts:
    """The first and the last layers have as many key heads as heads, those between fewer."""
    heads, layers = config.whole("num_attention_heads"), config.whole("num_hidden_layers")
    kv_heads_by_layer = config.get("num_key_value_heads_per_layer")
    inner_kv_heads = config.whole("num_key_value_attention_heads")
    first = config.get("num_first_full_attention_layers") or 0
    last = config.get("num_last_full_attention_layers") or 0
    inside = first <= layer < layers - last
    facts = _attention(config, layer)
    kv_heads = inner_kv_heads if inside else heads
    facts["kv_heads"] = kv_heads_by_layer[layer] if kv_heads_by_layer else kv_heads
    return facts | (qk_norms(eps(config)) if config.flag("use_qk_norm") else {})


def _rope(config: Config, layer: int) -> Mapping[str, Any]:
    head_dim = config.whole("hidden_size") // config.whole("num_attention_heads")
    return {"rope_type": "centred", "pair_axes": halves(head_dim)}


IGNORED = frozenset(
    {"layerscale_value", "num_upscale_blocks", "head_config", "pos_embed_rescale", "patch_size"}
)
DINOV3 = Family(
    model_type="dinov3_vit",
    attention=_attention,
    rope=_rope,
    tensors=TensorLayout(layers="layer.{layer}.attention."),
    ignored=IGNORED,
)
EOMT = Family(
    model_type="eomt_dinov3",
    attention=_masked_at_the_end,
    rope=_rope,
    tensors=TensorLayout(layers="layers.{layer}.attention."),
    defaults={"num_blocks": 4},
    ignored=IGNORED,
)
SAPIENS2 = Family(
    model_type="sapiens2",
    attention=_grouped_inside,
    rope=_rope,
    tensors=TensorLayout(
        layers="blocks.{layer}.attn.",
        modules={"q_proj": "wq", "k_proj": "wk", "v_proj": "wv", "o_proj": "proj"},
        ignored=(*COMMON_IGNORED, "attn.gamma.weight"),
    ),
    ignored=IGNORED,
)

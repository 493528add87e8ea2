"""DeepSeek's multi-head latent attention (MLA) and the families that took it over."""

import dataclasses
import math

from rope_export.checkpoints.families.base import Config, Facts, Family
from rope_export.checkpoints.families.reading import biases
from rope_export.checkpoints.layout import TensorLayout
from rope_export.rope.yarn import magnitude
from rope_export.spec import LatentSpec, Layout, PositionScale

NAMES = {
    "q_a_norm": "q_a_layernorm",
    "kv_a_norm": "kv_a_layernorm",
    "kv_a_proj": "kv_a_proj_with_mqa",
}


def latent_facts(config: Config, layer: int) -> Facts:
    """Widths of the latents, and the scale: YaRN's magnitude counts twice on top of head_dim."""
    nope, rope = config.whole("qk_nope_head_dim"), config.whole("qk_rope_head_dim")
    rank = config.get("q_lora_rank")
    bias = config.flag("attention_bias")
    config.get("head_dim"), config.get("qk_head_dim")  # follow from the two above
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    scale = (nope + rope) ** -0.5
    if parameters.get("rope_type", parameters.get("type", "default")) != "default":
        mscale = parameters.get("mscale_all_dim") or 0
        if mscale:
            scale *= magnitude(float(parameters["factor"]), float(mscale)) ** 2
    return biases("o", bias) | {
        "kv_heads": config.whole("num_attention_heads"),
        "head_dim": nope + rope,
        "value_dim": config.whole("v_head_dim"),
        "scale": scale,
        "latent": LatentSpec(
            q_rank=None if rank is None else config.whole("q_lora_rank"),
            kv_rank=config.whole("kv_lora_rank"),
            nope_dim=nope,
            rope_dim=rope,
            a_bias=bias,
        ),
    }


def _with(facts: Facts, **changed: object) -> Facts:
    """The facts with other numbers in their latent."""
    return facts | {"latent": dataclasses.replace(facts["latent"], **changed)}


def _multiplied(config: Config, layer: int) -> Facts:
    """LongCat multiplies both latents by the root of how much narrower they are."""
    facts = latent_facts(config, layer)
    hidden, latent = config["hidden_size"], facts["latent"]
    return _with(
        facts,
        q_factor=math.sqrt(hidden / latent.q_rank),
        kv_factor=math.sqrt(hidden / latent.kv_rank),
    )


def _position_scaled(config: Config, layer: int) -> Facts:
    facts, parameters = latent_facts(config, layer), config.get("rope_parameters") or {}
    return facts | {
        "position_scale": PositionScale(
            beta=parameters["llama_4_scaling_beta"],
            length=parameters["original_max_position_embeddings"],
        )
    }


def _gated(config: Config, layer: int) -> Facts:
    return latent_facts(config, layer) | {"gate": "head"}


def _switched(config: Config) -> Layout:
    """Published checkpoints have interleaved pairs, unless rope_interleave is off."""
    return "permuted" if config.flag("rope_interleave") else "half_split"


TENSORS = TensorLayout(modules=NAMES)


def _family(name: str, **more: object) -> Family:
    return Family(
        **{
            "model_type": name,
            "attention": latent_facts,
            "tensors": TENSORS,
            "layout": "permuted",
            **more,
        }  # type: ignore[arg-type]
    )


SWITCHED = tuple(
    _family(name, layout=_switched) for name in ("deepseek_v3", "glm4_moe_lite", "youtu", "axk1")
)
DEEPSEEK_V2 = _family("deepseek_v2", layout="interleaved")
MINICPM3 = _family("minicpm3", layout="half_split")
LONGCAT = _family(
    "longcat_flash",
    attention=_multiplied,
    depth=lambda config: 2 * config.whole("num_layers"),
    tensors=TensorLayout(layers="layers.{block}.self_attn.{side}.", modules=NAMES),
)
MISTRAL4 = _family(
    "mistral4",
    attention=_position_scaled,
    layout=_switched,
    rope=lambda config, layer: {"llama_4_scaling_beta": None},
)
BAILING = _family(
    "bailing_hybrid",
    attention=_gated,
    tensors=TensorLayout(
        layers="layers.{layer}.attention.",
        modules=NAMES | {"gate_proj": "g_proj", "o_proj": "dense"},
    ),
)

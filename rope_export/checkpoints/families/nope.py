"""SmolLM3 and Llama 4: layers without rotation, named by a list or a period."""

from collections.abc import Mapping
from typing import Any

from rope_export.checkpoints.families.base import Config, Facts, Family
from rope_export.checkpoints.families.reading import (
    bias_flag,
    biases,
    eps,
    qk_norms,
)
from rope_export.errors import SpecError
from rope_export.spec import PositionScale


def _rotates(config: Config, layer: int) -> bool:
    """no_rope_layers has 1 where the rotation is on, in spite of its name."""
    rotates = config.get("no_rope_layers")
    period = config.get("no_rope_layer_interval")
    if rotates:
        if len(rotates) <= layer:
            raise SpecError(f"config key no_rope_layers={rotates!r}: it must name every layer.")
        return bool(rotates[layer])
    return not period or (layer + 1) % period != 0


def _rope(config: Config, layer: int) -> Mapping[str, Any] | None:
    return {} if _rotates(config, layer) else None


def _llama4_kinds(config: Config) -> list[str] | None:
    if config.get("layer_types") is not None:
        return config["layer_types"]
    return [
        "chunked_attention" if _rotates(config, at) else "full_attention"
        for at in range(config["num_hidden_layers"])
    ]


def _llama4(config: Config, layer: int) -> Facts:
    facts = biases("qkvo", config.flag("attention_bias"))
    rotates, kinds = _rotates(config, layer), _llama4_kinds(config)
    norm, tuned = config.flag("use_qk_norm"), config.flag("attn_temperature_tuning")
    chunk = config.get("attention_chunk_size")
    config.get("attn_scale"), config.get("floor_scale")
    if kinds and kinds[layer] == "chunked_attention" and chunk is not None:
        facts["chunk"] = chunk
    if norm and rotates:
        facts |= qk_norms(eps(config), weight=False) | {"norm_after_rope": True}
    if tuned and not rotates:
        facts["position_scale"] = PositionScale(
            beta=config.number("attn_scale"), length=config.number("floor_scale"), offset=1
        )
    return facts


def _smollm3_kinds(config: Config) -> list[str] | None:
    """Without layer_types, the layers without rotation slide where the window is switched on."""
    if config.get("layer_types") is not None:
        return config["layer_types"]
    slides = config.flag("use_sliding_window") and config.get("sliding_window") is not None
    return [
        "sliding_attention" if slides and not _rotates(config, at) else "full_attention"
        for at in range(config["num_hidden_layers"])
    ]


SMOLLM3 = Family(model_type="smollm3", attention=bias_flag(), kinds=_smollm3_kinds, rope=_rope)

LLAMA4 = Family(
    model_type="llama4_text",
    attention=_llama4,
    kinds=_llama4_kinds,
    rope=_rope,
    layout="interleaved",
    ignored=frozenset({"for_llm_compressor"}),
)

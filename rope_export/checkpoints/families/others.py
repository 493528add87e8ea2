"""Families that differ from the common layout each in its own small way."""

from rope_export.checkpoints.families.base import Config, Facts, Family
from rope_export.checkpoints.families.reading import bias_flag, biases, qk_norms


def _chameleon(config: Config, layer: int) -> Facts:
    """Layer norms with weights for each head, one for each model-parallel part."""
    config.get("model_parallel_size")
    return biases("qkvo", config.flag("attention_bias")) | qk_norms(
        1e-5, kind="layer", over="heads", bias=True
    )


CHAMELEON = Family(model_type="chameleon", attention=_chameleon, ignored=frozenset({"swin_norm"}))
NEMOTRON = Family(model_type="nemotron", attention=bias_flag())
EVOLLA = Family(
    model_type="evolla",
    attention=bias_flag(),
    ignored=frozenset({"protein_encoder_config", "resampler_dim_head", "resampler_heads"}),
)

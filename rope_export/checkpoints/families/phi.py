"""Phi, Persimmon and StableLM: part of a head rotates, layer norms on queries and keys."""

from rope_export.checkpoints.families.base import Config, Facts, Family
from rope_export.checkpoints.families.reading import all_slide, biases, eps, qk_norms
from rope_export.checkpoints.layout import TensorLayout, blocks, head_by_head

NORMS = {"q_norm": "q_layernorm", "k_norm": "k_layernorm"}


def _phi(config: Config, layer: int) -> Facts:
    facts = biases("qkvo")
    if config.flag("qk_layernorm"):
        facts |= qk_norms(eps(config, "layer_norm_eps"), kind="layer", bias=True)
    return facts


def _stablelm(config: Config, layer: int) -> Facts:
    facts = biases("qkv", config.flag("use_qkv_bias"))
    if config.flag("qk_layernorm"):
        facts |= qk_norms(eps(config, "layer_norm_eps"), kind="layer", over="heads")
    return facts


def _older_name(config: Config, layer: int) -> dict[str, object]:
    """Phi-3's first files call longrope "su" or "yarn"."""
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope_type = parameters.get("rope_type", parameters.get("type"))
    return {"rope_type": "longrope", "type": None} if rope_type in ("su", "yarn") else {}


PHI = Family(
    model_type="phi",
    attention=_phi,
    tensors=TensorLayout(modules=NORMS | {"o_proj": "dense"}),
)
PERSIMMON = Family(
    model_type="persimmon",
    attention=_phi,
    tensors=TensorLayout(
        modules=NORMS | {"o_proj": "dense"}, fused=head_by_head("query_key_value")
    ),
)
STABLELM = Family(
    model_type="stablelm",
    attention=_stablelm,
    tensors=TensorLayout(
        modules={"q_norm": "q_layernorm.norms.{head}", "k_norm": "k_layernorm.norms.{head}"}
    ),
)
PHI3 = tuple(
    Family(
        model_type=name,
        kinds=all_slide,
        rope=_older_name,
        tensors=TensorLayout(fused=blocks("qkv_proj")),
    )
    for name in ("phi3", "phi4_multimodal")
)

"""GLM: interleaved pairs over half of each head, no bias on the output projection."""

from rope_export.checkpoints.families.base import Config, Facts, Family
from rope_export.checkpoints.families.reading import (
    always,
    bias_flag,
    biases,
    eps,
    qk_norms,
    sections,
)


def _moe(config: Config, layer: int) -> Facts:
    facts = biases("qkv", config.flag("attention_bias"))
    return facts | (qk_norms(eps(config)) if config.flag("use_qk_norm") else {})


GLM = tuple(
    Family(model_type=name, attention=bias_flag(parts="qkv"), layout="interleaved")
    for name in ("glm", "glm4", "helium")
)

GLM4_MOE = Family(model_type="glm4_moe", attention=_moe)

GLM4V = Family(
    model_type="glm4v_text",
    attention=lambda config, layer: biases("qkv"),
    rope=sections((8, 12, 12)),
    layout="interleaved",
)

GLM4V_MOE = tuple(
    Family(model_type=name, attention=bias_flag(parts="qkv"), rope=sections((8, 12, 12)))
    for name in ("glm4v_moe_text", "glm_image_text")
)

GLM_OCR = Family(
    model_type="glm_ocr_text",
    attention=always(),
    rope=sections((8, 12, 12)),
    layout="interleaved",
)

"""Families whose attention has what is not implemented: refused by the name of it."""

from rope_export.checkpoints.families.base import Family

TOP_K = "attention to the top keys that an indexer picks"

REFUSED = tuple(
    Family(model_type=name, missing=missing)
    for name, missing in {
        "axk2": TOP_K,
        "clvp_encoder": "values that rotate",
        "clvp_decoder": "values that rotate",
        "deepseek_ocr2_encoder": "a mask that is causal for some tokens only",
        "deepseek_v32": TOP_K,
        "deepseek_v4": "attention to compressed keys",
        "diffllama": "the difference of two attentions",
        "doge": "a mask computed from the values",
        "dots3_note_text": TOP_K,
        "edgetam_video": "attention to a memory",
        "efficientloftr": "a rotation over the width of all heads",
        "esmfold2": "positions that are coordinates in space",
        "esmfold2.atom_encoder": "positions that are coordinates in space",
        "glm_moe_dsa": TOP_K,
        "hunyuan_vl_text": "features of a pair that rotate by different axes",
        "hy_v4": TOP_K,
        "hy_v4_vl_text": TOP_K,
        "jetmoe": "queries and outputs that experts project",
        "lightglue": "learned angles",
        "mistral_large4_text": TOP_K,
        "muse_glimmer_assistant": "keys and values of another model",
        "neomme": "attention without the token's own value",
        "qwen4_exp_text": TOP_K,
        "sam2_video": "attention to a memory",
        "sam3_tracker_video": "attention to a memory",
        "timesfm2_5": "a learned factor for each feature of a query",
        "unlimited_ocr_text": "a window beside a reference that every token sees",
        "vjepa2": "features of a pair that rotate by different angles",
        "zamba2": "an attention shared by blocks",
        "zaya": "queries and keys that convolutions compress",
    }.items()
)

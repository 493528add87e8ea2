"""GLM: interleaved pairs over half of each head, no bias on the output projection."""

from rope_export.checkpoints.families import Family

GLM = Family(
    model_type="glm",
    source="transformers 5.23, models/glm",
    defaults={
        "attention_bias": True,
        "head_dim": 128,
        "num_key_value_heads": 2,
        "partial_rotary_factor": 0.5,
    },
    layout="interleaved",
    biases=lambda config: (*(bool(config["attention_bias"]),) * 3, False),
    keys=frozenset({"attention_bias"}),
)

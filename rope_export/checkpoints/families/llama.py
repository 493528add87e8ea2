"""Llama and the families whose attention differs from it in biases and defaults only."""

from rope_export.checkpoints.families import Family, attention_bias_everywhere

LLAMA = Family(
    model_type="llama",
    source="transformers 5.23, models/llama",
    defaults={"attention_bias": False},
    biases=attention_bias_everywhere,
    keys=frozenset({"attention_bias"}),
)

MISTRAL = Family(
    model_type="mistral",
    source="transformers 5.23, models/mistral",
    defaults={"num_key_value_heads": 8, "sliding_window": 4096},
)

QWEN2 = Family(
    model_type="qwen2",
    source="transformers 5.23, models/qwen2",
    defaults={"num_key_value_heads": 32, "use_sliding_window": False, "sliding_window": 4096},
    biases=lambda config: (True, True, True, False),
)

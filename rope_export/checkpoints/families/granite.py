"""Granite: Llama with its own factor on the attention scores."""

from rope_export.checkpoints.families import Family, attention_bias_everywhere

GRANITE = Family(
    model_type="granite",
    source="transformers 5.23, models/granite",
    defaults={"attention_bias": False, "attention_multiplier": 1.0},
    biases=attention_bias_everywhere,
    scale=lambda config: float(config["attention_multiplier"]),
    keys=frozenset({"attention_bias", "attention_multiplier"}),
)

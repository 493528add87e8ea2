"""One attention layer by plain `torch.onnx.export`: transformers' own module, which takes cos, sin
and a mask of (batch, 1, sequence, total)."""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim
from transformers import AutoModelForCausalLM, DynamicCache

from tests.conformance.families.cache import cache_name


class Wrapped(nn.Module):
    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.attention, self.cache = attention, cache_name(attention.forward)

    def forward(
        self,
        hidden_states: Tensor,
        cos: Tensor,
        sin: Tensor,
        attention_mask: Tensor,
        past_key: Tensor,
        past_value: Tensor,
    ) -> tuple[Tensor, ...]:
        cache = DynamicCache()
        for layer in range(self.attention.layer_idx + 1):
            cache.update(past_key, past_value, layer)
        output = self.attention(
            hidden_states,
            position_embeddings=(cos, sin),
            attention_mask=attention_mask,
            **{self.cache: cache},
        )[0]
        held: Any = cache.layers[self.attention.layer_idx]
        return output, held.keys, held.values


def export(checkpoint: Path, path: Path, layer: int = 0) -> Path:
    """Writes the attention of one layer to `path`."""
    model: Any = AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    attention = model.model.layers[layer].self_attn
    head, past, new = attention.head_dim, 5, 3
    shape = (2, model.config.num_key_value_heads, past, head)
    arguments = (
        torch.randn(2, new, model.config.hidden_size),
        torch.randn(2, new, head),
        torch.randn(2, new, head),
        torch.zeros(2, 1, new, past + new),
        torch.randn(shape),
        torch.randn(shape),
    )
    tokens, slots = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}, {0: Dim.DYNAMIC, 2: Dim.DYNAMIC}
    mask = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    with torch.no_grad(), warnings.catch_warnings(action="ignore"):
        torch.onnx.export(
            Wrapped(attention).eval(),
            arguments,
            str(path),
            dynamo=True,
            external_data=False,
            opset_version=20,
            dynamic_shapes=(tokens, tokens, tokens, mask, slots, slots),
            input_names=[
                *("hidden_states", "cos", "sin", "attention_mask", "past_key", "past_value")
            ],
            output_names=["attention_output", "present_key", "present_value"],
            verbose=False,
        )
    return path

"""What torch.onnx.export makes of transformers' attention module, in a process of its own:
`python -m scripts.benchmarks.peers.torch_layer CHECKPOINT OUT OPSET`.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM


class Growing:
    """The one method of a cache that the attention module calls."""

    def __init__(self, key: Tensor, value: Tensor) -> None:
        self.key, self.value = key, value

    def update(self, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        self.key = torch.cat((self.key, key), dim=2)
        self.value = torch.cat((self.value, value), dim=2)
        return self.key, self.value


class Layer(nn.Module):
    """The attention and the rotary module of a model's first layer, with a growing cache.

    Attention is scaled_dot_product_attention, transformers' own choice, under a mask made of cache
    slots and attention_mask, as its models make theirs.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.attention, self.rotary = model.layers[0].self_attn, model.rotary_emb

    def forward(
        self, hidden: Tensor, mask: Tensor, positions: Tensor, key: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        cache = Growing(key, value)
        own = key.shape[2] + torch.arange(hidden.shape[1])
        slots = torch.arange(key.shape[2] + hidden.shape[1])
        visible = (slots <= own[:, None]) & (mask[:, None, None, :] == 1)
        tables = self.rotary(hidden, positions)
        output, _ = self.attention(hidden, tables, visible, cache)
        return output, cache.key, cache.value


def export(checkpoint: Path, out: Path, opset: int) -> None:
    """Write model.onnx, in which batch, sequence and past are dynamic."""
    model = LlamaForCausalLM.from_pretrained(checkpoint, attn_implementation="sdpa").eval().model
    config: Any = model.config
    past = torch.zeros(2, config.num_key_value_heads, 5, config.head_dim)
    examples = (
        torch.zeros(2, 3, config.hidden_size),
        torch.ones(2, 8, dtype=torch.int64),
        torch.arange(5, 8).expand(2, 3),
        past,
        past.clone(),
    )
    batch, sequence, slots = (torch.export.Dim(name) for name in ("batch", "sequence", "past"))
    tokens, cache = {0: batch, 1: sequence}, {0: batch, 2: slots}
    torch.onnx.export(
        Layer(model),
        examples,
        str(out / "model.onnx"),
        dynamo=True,
        opset_version=opset,
        input_names=["hidden_states", "attention_mask", "position_ids", "past_key", "past_value"],
        output_names=["attention_output", "present_key", "present_value"],
        dynamic_shapes=(tokens, {0: batch, 1: torch.export.Dim.AUTO}, tokens, cache, cache),
        external_data=False,
        verbose=False,
    )


if __name__ == "__main__":
    export(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))

"""Exports that run in the project's own environment, each in a process of its own so that its time
and memory are its own: `python -m scripts.bench_peers.child torch|ours CHECKPOINT OUT ...`.
"""

import argparse
import sys
import warnings
from pathlib import Path
from typing import Any


def torch_layer(checkpoint: Path, out: Path, opset: int) -> None:
    """transformers' attention module, its rotary module and a growing cache, exported by torch.

    Batch, sequence and past are dynamic. Attention is scaled_dot_product_attention, transformers'
    own choice, under a mask made of cache slots and attention_mask, as its models make theirs.
    """
    import torch
    from torch import Tensor, nn
    from transformers import LlamaForCausalLM

    class Growing:
        """The one method of a cache that the attention module calls."""

        def __init__(self, key: Tensor, value: Tensor) -> None:
            self.key, self.value = key, value

        def update(self, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
            self.key = torch.cat((self.key, key), dim=2)
            self.value = torch.cat((self.value, value), dim=2)
            return self.key, self.value

    class Layer(nn.Module):
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

    model = LlamaForCausalLM.from_pretrained(checkpoint, attn_implementation="sdpa").eval().model
    config: Any = model.config
    kv = (2, config.num_key_value_heads, 5, config.head_dim)
    examples = (
        torch.zeros(2, 3, config.hidden_size),
        torch.ones(2, 8, dtype=torch.int64),
        torch.arange(5, 8).expand(2, 3),
        torch.zeros(kv),
        torch.zeros(kv),
    )
    batch, sequence, past = (torch.export.Dim(name) for name in ("batch", "sequence", "past"))
    auto = torch.export.Dim.AUTO
    cache = {0: batch, 2: past}
    shapes = ({0: batch, 1: sequence}, {0: batch, 1: auto}, {0: batch, 1: sequence}, cache, cache)
    torch.onnx.export(
        Layer(model),
        examples,
        str(out / "model.onnx"),
        dynamo=True,
        opset_version=opset,
        input_names=["hidden_states", "attention_mask", "position_ids", "past_key", "past_value"],
        output_names=["attention_output", "present_key", "present_value"],
        dynamic_shapes=shapes,
        external_data=False,
        verbose=False,
    )


def ours(checkpoint: Path, out: Path, lowering: str, cache: str, padding: bool) -> None:
    """The same layer by rope_export, not verified, as the others are not."""
    from rope_export import export

    kind: Any = cache
    export(checkpoint, out=out, lowering=lowering, cache=kind, padding=padding)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.bench_peers.child")
    parser.add_argument("exporter", choices=("torch", "ours"))
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--opset", type=int, default=18)
    parser.add_argument("--lowering", default="standard")
    parser.add_argument("--cache", default="growing")
    parser.add_argument("--padding", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.exporter == "torch":
        torch_layer(options.checkpoint, options.out, options.opset)
    else:
        chosen = (options.lowering, options.cache, options.padding)
        ours(options.checkpoint, options.out, *chosen)
    return 0


if __name__ == "__main__":
    sys.exit(main())

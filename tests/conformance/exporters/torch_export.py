"""A whole decoder by plain `torch.onnx.export`, as a user writes it: transformers' model behind a
wrapper that takes and gives the cache as tensors."""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim
from transformers import AutoModelForCausalLM, DynamicCache

from tests.conformance.families.cache import cache_name


class Wrapped(nn.Module):
    """input_ids, position_ids (batch, sequence); attention_mask (batch, total); caches: key and
    value of each layer (batch, heads, past, width)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.cache = model, cache_name(model.forward)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, caches: list[Tensor]
    ) -> tuple[Tensor, ...]:
        cache = DynamicCache()
        for layer, pair in enumerate(zip(caches[::2], caches[1::2], strict=True)):
            cache.update(*pair, layer)
        logits = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            **{self.cache: cache},
            use_cache=True,
        ).logits
        held: list[Any] = cache.layers
        after = [x for layer in held for x in (layer.keys, layer.values)]
        return (logits, *after)


def export(checkpoint: Path, out: Path, opset: int = 20) -> Path:
    """Writes out/model.onnx. Raises: what torch raises."""
    model: Any = AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    config = model.config
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    layers, past, new = config.num_hidden_layers, 5, 3
    shape = (2, config.num_key_value_heads, past, head)
    kinds = [f"{layer}.{kind}" for layer in range(layers) for kind in ("key", "value")]
    arguments = (
        torch.randint(3, config.vocab_size, (2, new)),
        torch.ones((2, past + new), dtype=torch.int64),
        torch.arange(past, past + new).expand(2, new).contiguous(),
        [torch.randn(shape) for _ in kinds],
    )
    axes = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
    slots = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC}
    out.mkdir(parents=True, exist_ok=True)
    path = out / "model.onnx"
    with torch.no_grad(), warnings.catch_warnings(action="ignore"):
        torch.onnx.export(
            Wrapped(model).eval(),
            arguments,
            str(path),
            dynamo=True,
            external_data=False,
            opset_version=opset,
            dynamic_shapes=(axes, axes, axes, [slots for _ in kinds]),
            input_names=["input_ids", "attention_mask", "position_ids"]
            + [f"past_key_values.{kind}" for kind in kinds],
            output_names=["logits", *(f"present.{kind}" for kind in kinds)],
            verbose=False,
        )
    return path

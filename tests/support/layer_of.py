"""One layer of a config file as transformers builds it, beside ours of the same file."""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from rope_export import AttentionSpec, RotaryAttention
from rope_export.checkpoints import open_model
from rope_export.checkpoints.config import Read, select, spec_of
from tests.conformance.families.building import randomise, set_eager
from tests.conformance.families.rotary_classes import attention_modules

TOKENS = 12

TINY: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "num_local_experts": 2,
    "num_experts_per_tok": 1,
}


def tiny(model_type: str, **keys: Any) -> dict[str, Any]:
    """A small config of the family; keys that are None are left out."""
    config = {**TINY, "model_type": model_type, **keys}
    return {key: value for key, value in config.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Layer:
    """What transformers' attention got and gave in a prefill, and our reading of the file."""

    read: Read
    spec: AttentionSpec
    weights: Mapping[str, Tensor]
    hidden: Tensor
    output: Tensor
    positions: Tensor

    def error(self, spec: AttentionSpec | None = None) -> float:
        """Largest difference of our output from transformers', relative to the largest.

        spec: another reading of the same weights.
        """
        spec = self.spec if spec is None else spec
        module = RotaryAttention.from_weights(spec, self.weights)
        inputs = {"hidden_states": self.hidden}
        axes = 1 if spec.rope is None else spec.rope.axes
        positions = self.positions if axes == 1 else self.positions.expand(axes, -1, -1)
        inputs |= {"position_ids": positions.contiguous()} if spec.uses_positions else {}
        with torch.no_grad():
            output = module(**inputs)
        output = output[0] if isinstance(output, tuple) else output
        return float((output - self.output).abs().max() / self.output.abs().max())


def layer_of(
    config: Mapping[str, Any], layer: int = 0, *, first: int = 0, part: str | None = None
) -> Layer:
    """The layer, both ways, from one config.json.

    first: position of the first token. Raises: what transformers or our reading raises.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.json"
        file.write_text(json.dumps(dict(config)), encoding="utf-8")
        theirs = AutoConfig.from_pretrained(file)
        set_eager(theirs)
        model: Any = AutoModel.from_config(theirs).double().eval()
        randomise(model)
        model = model.float()  # so that a file holds its numbers
        output, hidden, positions = _run(model.double(), layer, first)
        model.float().save_pretrained(folder)
        file.write_text(json.dumps(dict(config)), encoding="utf-8")
        read = select(file, part)
        spec = spec_of(read, layer)
        weights = open_model(folder, part=part).layer(layer).weights()
    return Layer(
        read=read,
        spec=spec,
        weights={name: value.double() for name, value in weights.items()},
        hidden=hidden,
        output=output,
        positions=positions,
    )


def _run(model: Any, layer: int, first: int) -> tuple[Tensor, Tensor, Tensor]:
    """The output and the input of the layer's attention in a prefill, and the positions."""
    modules = attention_modules(model, type(model).__module__.split(".")[2])
    path = next(path for path in modules if f".{layer}." in f".{path}")
    calls: list[tuple[Tensor, Tensor]] = []

    def keep(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        output = output[0] if isinstance(output, tuple) else output
        calls.append((hidden.detach(), output.detach()))

    positions = torch.arange(first, first + TOKENS).expand(2, TOKENS).contiguous()
    handle = modules[path].register_forward_hook(keep, with_kwargs=True)
    stream = torch.Generator().manual_seed(3)
    ids = torch.randint(5, 100, (2, TOKENS), generator=stream)
    with torch.no_grad():
        model(input_ids=ids, position_ids=positions)
    handle.remove()
    (hidden, output), *_ = calls
    return output, hidden, positions

"""The model around its layers as a module to trace: each layer is one node."""

import inspect
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from rope_export.decoder.forwards import gives_tuple
from rope_export.decoder.model import CausalLM, set_submodule
from rope_export.decoder.modules import Form, TiedHead
from rope_export.decoder.quantized import QuantizedEmbedding, QuantizedProjection, fits
from rope_export.decoder.rotations import without_length
from rope_export.interface import TensorType

DOMAIN = "rope_export.layers"
"""The domain of the nodes that stand for layers until these are stamped in."""

HANDLED = {
    "attention_mask",
    "position_ids",
    "position_embeddings",
    "cache",
    "past_key_values",
    "past_key_value",
    "layer_past",
    "cache_position",
}
"""Arguments of a layer's forward that the attention alone looks at, which has its own."""


@dataclass
class Call:
    """How a model calls a layer. torch.export puts back what a module's attributes were before it
    traced, but looks into no object of this kind.

    arguments: by name, without tensors. extras: the tensors among them. tensors: these themselves,
    after the hidden states. output: what the node gave.
    """

    arguments: dict[str, Any] = field(default_factory=dict)
    extras: tuple[TensorType, ...] = ()
    tensors: tuple[Tensor, ...] = ()
    output: Tensor | None = None


class LayerNode(nn.Module):
    """In place of a decoder layer: one node, which takes the hidden states and whatever else the
    model hands this layer.

    call: the last one. rehearsing: only to record it.
    """

    rehearsing = False

    def __init__(self, layer: nn.Module, index: int, as_tuple: bool) -> None:
        super().__init__()
        self.index, self.as_tuple = index, as_tuple
        parameters = list(inspect.signature(layer.forward).parameters.values())[1:]
        self.names = [x.name for x in parameters if x.kind is x.POSITIONAL_OR_KEYWORD]
        self.call = Call()
        for name, value in vars(layer).items():  # what models ask a layer for
            if isinstance(value, str | int | float | bool | None) and not hasattr(self, name):
                setattr(self, name, value)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        kwargs |= dict(zip(self.names, args, strict=False))
        extras = {
            name: value
            for name, value in kwargs.items()
            if isinstance(value, Tensor) and name not in HANDLED
        }
        plain = {name: value for name, value in kwargs.items() if name not in extras}
        self.call.arguments = plain | dict.fromkeys(HANDLED & kwargs.keys())
        self.call.extras = tuple(_described(name, value) for name, value in extras.items())
        if self.rehearsing:
            self.call.tensors = (hidden_states, *extras.values())
            self.call.output = hidden_states.clone()
            return (self.call.output,) if self.as_tuple else self.call.output
        (output,) = torch.onnx.ops.symbolic_multi_out(
            f"{DOMAIN}::Layer",
            (hidden_states, *extras.values()),
            {"index": self.index},
            dtypes=[hidden_states.dtype],
            shapes=[hidden_states.shape],
            version=1,
        )
        return (output,) if self.as_tuple else output


def _described(name: str, tensor: Tensor) -> TensorType:
    """An extra tensor of a layer: (batch, sequence, ...) or a constant shape."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    shape = [size if isinstance(size, int) else None for size in tensor.shape]
    axes = iter(("batch", "sequence"))
    return TensorType(
        name=name,
        dtype=dtype,
        shape=tuple(next(axes) if size is None else size for size in shape),
    )


def _alike(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether two calls have the same arguments beside tensors."""
    return first.keys() == second.keys() and all(
        value is second[name] or (isinstance(value, str | int | float) and value == second[name])
        for name, value in first.items()
    )


class LastToken(nn.Module):
    """The head of the model, on one token of each row."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head
        self.index: Tensor | None = None

    def forward(self, hidden_states: Tensor) -> Tensor:
        if self.index is None:
            return self.head(hidden_states)
        rows = torch.arange(hidden_states.shape[0], device=hidden_states.device)
        return self.head(hidden_states[rows, self.index])[:, None]


class Skeleton(nn.Module):
    """The causal LM as a function of tokens and positions, its layers as nodes.

    Taking a causal LM, it puts nodes in place of its layers; `layers` holds these.
    """

    def __init__(self, lm: CausalLM, form: Form) -> None:
        super().__init__()
        self.model = lm.model
        without_length(lm.model)
        self.layers = list(lm.layers)
        self.nodes = [
            LayerNode(layer, at, gives_tuple(layer)) for at, layer in enumerate(lm.layers)
        ]
        for at, node in enumerate(self.nodes):
            lm.layers[at] = node
        head = lm.model.get_output_embeddings()
        embedding = lm.model.get_input_embeddings()
        self.head_path = next(n for n, x in lm.model.named_modules() if x is head)
        if head.weight is not embedding.weight:
            self.head = LastToken(form.projection(head, "head"))
        elif form.quantizes("head"):
            lowered = form.projection(head, "head")
            self.head = LastToken(lowered)
            quantized = lowered if isinstance(lowered, QuantizedProjection) else None
            if form.quantizes("embedding") and quantized and fits(embedding, quantized):
                path = next(n for n, x in lm.model.named_modules() if x is embedding)
                set_submodule(lm.model, path, QuantizedEmbedding(quantized))
        else:
            self.head = LastToken(TiedHead(head))
        lm.model.set_output_embeddings(self.head)
        if len(self.nodes) > 1 and self._is_chain():
            del lm.layers[1:]
            self.nodes = self.nodes[:1] * len(self.nodes)

    def _is_chain(self) -> bool:
        """Whether the model hands each layer what the one before gave, and all of them the same
        otherwise: then one node stands for all."""
        LayerNode.rehearsing = True
        try:
            with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
                tokens = torch.zeros(2, 3, dtype=torch.int64)
                self(tokens, tokens, torch.zeros(2, dtype=torch.int64))
            calls = [node.call for node in self.nodes]
            return all(
                after.tensors[0] is before.output
                and len(after.tensors) == len(calls[0].tensors)
                and all(map(operator.is_, after.tensors[1:], calls[0].tensors[1:]))
                and _alike(after.arguments, calls[0].arguments)
                for before, after in pairwise(calls)
            )
        except Exception:  # what cannot be rehearsed is traced layer by layer
            return False
        finally:
            LayerNode.rehearsing = False
            for node in self.nodes:
                node.call.tensors, node.call.output = (), None

    def forward(self, *tensors: Tensor) -> Tensor:
        """tensors: input_ids (B, S), position_ids (B, S), and the index of each row's token whose
        logits are asked for, int64 (B); all if there is none.
        Returns: logits (B, 1 or S, vocabulary)."""
        input_ids, position_ids, *last_token = tensors
        self.head.index = last_token[0] if last_token else None
        keywords: Mapping[str, Any] = {"input_ids": input_ids, "position_ids": position_ids}
        logits: Tensor = self.model(**keywords, use_cache=False).logits
        return logits

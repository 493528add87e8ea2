"""Layers of transformers' own attention modules: their weights, their calls and our reading."""

import dataclasses
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding

from rope_export import AttentionSpec, RotaryAttention
from rope_export.checkpoints.config import select, spec_of
from rope_export.checkpoints.layout import TensorLayout, taken
from rope_export.rope.default import DefaultRope
from rope_export.spec import RopeSpec
from tests.conformance.families.building import randomise
from tests.conformance.families.capture import Call, captures
from tests.conformance.families.compare import growing, inputs_of
from tests.conformance.families.recorder import KeepFloat64
from tests.conformance.families.shrinking import tiny_config
from tests.conformance.families.tiny import tiny_models

UNMODIFIED = 2e-6
"""transformers has softmax and norms in float32, in float64 modules too: some 2**-24 each."""
FLOAT64 = 1e-12
"""With those kept at float64 on both sides; the angles are the same float32 numbers."""
FAR = 1e-3
"""What a wrong reading is off by at least, relative to the largest output."""
HIDDEN, HEADS, KV_HEADS, HEAD_DIM = 64, 4, 2, 16


@dataclass(frozen=True, kw_only=True)
class Step:
    """One call of transformers' module: what it got by our names, and what it returned."""

    inputs: Mapping[str, Tensor]
    output: Tensor
    output64: Tensor
    """With softmax and norms in float64."""
    real: Tensor
    """Tokens that are not padding, bool (B, S)."""
    goes_on: bool = False
    """Whether the cache of the step before is the past."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A layer of a transformers model: our spec of it, its weights by our names, its calls."""

    spec: AttentionSpec
    weights: Mapping[str, Tensor]
    steps: tuple[Step, ...]
    layout: TensorLayout = dataclasses.field(default_factory=TensorLayout)
    tensors: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    """The module's own, by the names of a checkpoint."""

    def read_as(self, **changes: Any) -> "Trained":
        """The same layer with another reading of its facts."""
        spec = dataclasses.replace(self.spec, **changes)
        weights = {name: self.weights[name] for name in spec.weight_shapes}
        return dataclasses.replace(self, spec=spec, weights=weights)

    def rotated_as(self, **changes: Any) -> "Trained":
        """The same layer with another reading of its rotation."""
        assert self.spec.rope is not None
        return self.read_as(rope=dataclasses.replace(self.spec.rope, **changes))

    def taken_as(self, fused: Any) -> "Trained":
        """The same layer with other rows of its fused projection."""
        layout = dataclasses.replace(self.layout, fused=fused)
        weights = {k: v.double() for k, v in taken(layout, self.spec, self.tensors).items()}
        return dataclasses.replace(self, weights=weights)

    def module(self) -> RotaryAttention:
        return RotaryAttention.from_weights(self.spec, self.weights)

    def error(self, *, exact: bool = False, module: RotaryAttention | None = None) -> float:
        """Largest difference of any output of ours, relative to transformers' largest."""
        module = self.module() if module is None else module
        names = [pair.input for pair in growing(self.spec).caches]
        largest, cache = 0.0, {}
        for step in self.steps:
            with torch.no_grad():
                output, *present = module(**step.inputs, **(cache if step.goes_on else {}))
            cache = dict(zip(names, present, strict=True))
            wanted = (step.output64 if exact else step.output)[step.real]
            apart = (output[step.real] - wanted).abs().max() / wanted.abs().max()
            assert bool(apart.isfinite())
            largest = max(largest, float(apart))
        return largest

    def float64_error(self) -> float:
        """As `error`, with softmax and norms in float64 on both sides, angles in float32."""
        module = self.module()
        cos_sin = module.cos_sin

        def as_trained(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            with torch._C.DisableTorchFunction():
                return cos_sin(*args, **kwargs)

        module.cos_sin = as_trained  # type: ignore[method-assign]
        with KeepFloat64():
            return self.error(exact=True, module=module)


def right(layer: Trained) -> None:
    """The layer is transformers'."""
    assert layer.error() <= UNMODIFIED
    assert layer.float64_error() <= FLOAT64


def wrong(layer: Trained) -> None:
    """The layer is not, and no tolerance of ours would let it pass."""
    assert layer.error() > FAR


def trained(family: str, layer: int = 0, **changes: Any) -> Trained:
    """A layer of the family's tiny model, read from its config: prefill, two decode steps with
    transformers' cache, and a prefill with padding."""
    tiny = next(iter(tiny_models(family)))
    if changes:
        config = tiny_config(type(tiny.config), family, **changes)
        tiny = dataclasses.replace(tiny, config=config)
    with tempfile.TemporaryDirectory() as folder:
        capture = captures(tiny, Path(folder))[layer]
    assert capture.layer_idx == layer
    assert capture.config is not None
    assert capture.config._attn_implementation == "eager"
    read = select(capture.config.to_dict())
    spec, layout = spec_of(read, layer), read.layout(layer)
    tensors = {layout.own + name: value for name, value in capture.weights.items()}
    steps = tuple(_step(call, spec) for call in capture.calls)
    assert {call.kind for call in capture.calls} == {"prefill", "decode", "padded"}
    return Trained(
        spec=spec,
        weights={k: v.double() for k, v in taken(layout, spec, tensors).items()},
        steps=steps,
        layout=layout,
        tensors=tensors,
    )


def _step(call: Call, spec: AttentionSpec) -> Step:
    real = torch.ones(call.output.shape[:2], dtype=torch.bool)
    if call.kind == "padded" and call.mask_2d is not None:
        real = call.mask_2d.bool()
    return Step(
        inputs=inputs_of(call, spec),
        output=call.output,
        output64=call.output64,
        real=real,
        goes_on=call.kind == "decode",
    )


def called(
    module: nn.Module, rotary: nn.Module, position_ids: Tensor, spec: AttentionSpec
) -> Trained:
    """One causal call of an attention module that is by itself, at positions of our choice.

    position_ids: (B, S) or (axes, B, S). rotary: fresh, for that `dynamic` remembers.
    """
    module = module.double().eval()
    randomise(module)
    batch, sequence = position_ids.shape[-2:]
    stream = torch.Generator().manual_seed(3)
    hidden = torch.randn(batch, sequence, HIDDEN, dtype=torch.float64, generator=stream)
    # float32's lowest number: that of float64 is minus infinity to a softmax in float32.
    mask = torch.full((sequence, sequence), torch.finfo(torch.float32).min, dtype=torch.float64)
    given = {
        "hidden_states": hidden,
        "position_embeddings": rotary(hidden, position_ids),
        "attention_mask": mask.triu(1)[None, None],
    }
    with torch.no_grad():
        output = module(**given)[0]
        with KeepFloat64():
            output64 = module(**given)[0]
    step = Step(
        inputs={"hidden_states": hidden, "position_ids": position_ids},
        output=output,
        output64=output64,
        real=torch.ones(batch, sequence, dtype=torch.bool),
    )
    return Trained(spec=spec, weights=module.state_dict(), steps=(step,))


def llama(position_ids: Tensor, **rope: Any) -> Trained:
    """A call of Llama's attention with that rotation, its max_position_embeddings being 64."""
    config = llama_config(**rope)
    rotary = LlamaRotaryEmbedding(config)
    spec = AttentionSpec.from_hf(config)
    return called(LlamaAttention(config, layer_idx=0), rotary, position_ids, spec)


def llama_config(**rope: Any) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=HIDDEN,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        num_hidden_layers=1,
        max_position_embeddings=64,
        rope_parameters={"rope_theta": 1e4, **rope},
        attn_implementation="eager",
    )


@dataclass(frozen=True, kw_only=True)
class GivenRope(RopeSpec):
    """Frequencies as they are told: a reading of a config that no variant of ours has."""

    rope_type = "given"

    frequencies: Tensor
    factor: float = 1.0

    def inv_freq(self, length: Tensor | None = None) -> Tensor:
        return self.frequencies.float().clone()

    @property
    def attention_factor(self) -> float:
        return self.factor


def turning(layer: Trained, frequencies: Tensor) -> Trained:
    """The layer with other frequencies and the same factor."""
    rope = layer.spec.rope
    assert rope is not None
    given = GivenRope(
        rotary_dim=2 * len(frequencies),
        layout=rope.layout,
        frequencies=frequencies,
        factor=rope.attention_factor,
    )
    return layer.read_as(rope=given)


def frequencies(layer: Trained, length: int | None = None) -> Tensor:
    assert layer.spec.rope is not None
    return layer.spec.rope.inv_freq(None if length is None else torch.tensor(length))


PLAIN = DefaultRope(rotary_dim=HEAD_DIM).inv_freq()


def up_to(length: int, tokens: int = 12) -> Tensor:
    """The last positions of a context of that length, the same in both rows."""
    return torch.arange(length - tokens, length).expand(2, tokens).contiguous()

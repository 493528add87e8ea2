"""Misreadings of rotary attention that are plausible and silent, each against transformers.

Every test shows that our layer computes what transformers' own attention module computes, and that
the wrong reading does not: so it would fail if we had it. The reference is transformers 5.23 with
eager attention on the CPU in float64, random weights, batch 2.
"""

import dataclasses
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, Qwen2VLTextConfig, Qwen3VLTextConfig
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLAttention, Qwen2VLRotaryEmbedding
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    Qwen3VLTextAttention,
    Qwen3VLTextRotaryEmbedding,
)

from rope_export import AttentionSpec, RotaryAttention
from rope_export.checkpoints.config import select, spec_of
from rope_export.checkpoints.families import every_family
from rope_export.checkpoints.layout import TensorLayout, blocks, group_by_group, taken
from rope_export.rope.default import DefaultRope
from rope_export.rope.sections import blocks as axes_in_blocks
from rope_export.rope.sections import interleaved as axes_in_turns
from rope_export.rope.yarn import YarnRope
from rope_export.spec import NormSpec, RopeSpec
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


SPREAD = torch.tensor([[0, 1, 2, 5, 9, 17, 33, 60, 100, 250, 400, 511]] * 2)
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64}


def test_yarn_keeps_the_fast_pairs() -> None:
    """YaRN, arXiv:2309.00071, section 3.2. Wrong: the ramp the other way, so that fast pairs are
    interpolated and slow ones kept; and YaRN without its factor on cos and sin."""
    layer = llama(SPREAD, **YARN)
    right(layer)
    found = frequencies(layer)
    assert torch.equal(found[:1], PLAIN[:1])
    torch.testing.assert_close(found[-1:], PLAIN[-1:] / 8)
    wrong(turning(layer, PLAIN + PLAIN / 8 - found))
    wrong(layer.rotated_as(factor_given=1.0))
    wrong(turning(layer, PLAIN / 8))


@pytest.mark.parametrize("truncate", [True, False])
def test_yarn_truncates_unless_told_not_to(truncate: bool) -> None:
    """gpt-oss has truncate off. Wrong: the other way; left out, it is on."""
    layer = llama(SPREAD, **YARN, truncate=truncate)
    right(layer)
    wrong(layer.rotated_as(truncate=not truncate))
    left_out = llama(SPREAD, **YARN)
    right(left_out)
    assert isinstance(left_out.spec.rope, YarnRope)
    assert left_out.spec.rope.truncate


@pytest.mark.parametrize(("length", "off_by_one"), [(64, 63), (65, 65)])
def test_longrope_is_short_up_to_the_original_length(length: int, off_by_one: int) -> None:
    """Wrong: to take the long factors from the original length on, or from two tokens beyond;
    length is that of the call, one more than its largest position, for all of its tokens."""
    layer = llama(
        up_to(length),
        rope_type="longrope",
        factor=4.0,
        original_max_position_embeddings=64,
        short_factor=[1.0 + 0.1 * pair for pair in range(8)],
        long_factor=[2.0 + 0.5 * pair for pair in range(8)],
    )
    right(layer)
    wrong(layer.rotated_as(original_length=float(off_by_one)))
    wrong(turning(layer, frequencies(layer, 1 if length > 64 else 65)))
    wrong(layer.rotated_as(factor_given=1.0))


DYNAMIC = {"rope_type": "dynamic", "factor": 4.0}


@pytest.mark.parametrize("length", [12, 63, 64])
def test_dynamic_is_plain_within_the_trained_length(length: int) -> None:
    """Wrong: the base grown already, as for twice the length."""
    layer = llama(up_to(length), **DYNAMIC)
    right(layer)
    wrong(turning(layer, frequencies(layer, 128)))


@pytest.mark.parametrize("length", [80, 128, 256])
def test_dynamic_grows_beyond(length: int) -> None:
    """Wrong: the plain base, as from the number of tokens; the base of the factor alone."""
    layer = llama(up_to(length), **DYNAMIC)
    # The base is a power of float64 here, of float32 there: up to two roundings of inv_freq, which
    # the position multiplies, in q and in k.
    rounding = 2 * 2 * length * 2**-24
    assert layer.error() <= UNMODIFIED + rounding
    assert layer.float64_error() <= rounding
    by_tokens = frequencies(layer, 12)
    assert torch.equal(by_tokens, PLAIN)
    wrong(turning(layer, by_tokens))
    wrong(turning(layer, DefaultRope(rotary_dim=16, theta=1e4 * 4 ** (16 / 14)).inv_freq()))


def test_dynamic_forgets_a_longer_call() -> None:
    """Wrong: a base kept from a longer call, as a module of transformers that has seen one does.
    The reference for the same positions is a fresh module."""
    layer, used = llama(up_to(128), **DYNAMIC), LlamaRotaryEmbedding(llama_config(**DYNAMIC))
    module = layer.module()
    hidden = torch.randn(1, 1, HIDDEN, dtype=torch.float64)
    module(hidden, torch.tensor([[511]]))
    assert layer.error(module=module) <= UNMODIFIED + 2 * 2 * 128 * 2**-24
    used(hidden, torch.tensor([[511]]))
    used(hidden, up_to(128))
    wrong(turning(layer, used.inv_freq))


def test_llama3_has_three_bands() -> None:
    """Wrong: no stretch, all stretched, and either of two bands without the blend between."""
    layer = llama(
        SPREAD,
        rope_type="llama3",
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=8.0,
        original_max_position_embeddings=256,
    )
    right(layer)
    found = frequencies(layer)
    kept, stretched = torch.isclose(found, PLAIN), torch.isclose(found, PLAIN / 8)
    between = ~kept & ~stretched
    assert kept.any()
    assert stretched.any()
    assert between.any()
    wrong(turning(layer, PLAIN))
    wrong(turning(layer, PLAIN / 8))
    wrong(turning(layer, torch.where(between, PLAIN, found)))
    wrong(turning(layer, torch.where(between, PLAIN / 8, found)))
    wrong(turning(layer, torch.where(kept, PLAIN / 8, torch.where(stretched, PLAIN, found))))


def test_glm_turns_neighbours_in_half_of_a_head() -> None:
    """models/glm. Wrong: halves paired, the whole head, and the powers of a whole head."""
    layer = trained("glm")
    rope = layer.spec.rope
    assert rope is not None
    assert rope.rotary_dim == layer.spec.head_dim // 2
    right(layer)
    wrong(layer.rotated_as(layout="half_split"))
    wrong(layer.rotated_as(rotary_dim=layer.spec.head_dim))
    whole = DefaultRope(rotary_dim=layer.spec.head_dim, theta=rope.theta).inv_freq()
    wrong(turning(layer, whole[: rope.rotary_dim // 2]))


def test_cohere_repeats_each_angle_beside_itself() -> None:
    """models/cohere: repeat_interleave, and the pairs (2i, 2i + 1). Wrong: halves."""
    layer = trained("cohere")
    right(layer)
    wrong(layer.rotated_as(layout="half_split"))


def test_gemma3_has_two_bases() -> None:
    """models/gemma3: sliding layers keep the base of 10000. Wrong: the other layer's."""
    sliding, full = trained("gemma3", 0), trained("gemma3", 1)
    assert sliding.spec.window is not None
    assert full.spec.window is None
    for layer, other in ((sliding, full), (full, sliding)):
        right(layer)
        wrong(layer.read_as(rope=other.spec.rope))


def test_olmo2_norms_the_full_width() -> None:
    """models/olmo2: the mean square is over all heads. Wrong: head by head, weights the same."""
    layer = trained("olmo2")
    right(layer)
    norm = layer.spec.q_norm
    assert isinstance(norm, NormSpec)
    assert norm.over == "all"
    by_head = dataclasses.replace(norm, over="heads")
    misread = layer.read_as(q_norm=by_head, k_norm=by_head)
    weights = {
        name: value.unflatten(0, (-1, layer.spec.head_dim)) if "_norm" in name else value
        for name, value in misread.weights.items()
    }
    wrong(dataclasses.replace(misread, weights=weights))


def test_hunyuan_norms_after_the_rotation() -> None:
    """models/hunyuan_v1_dense. Wrong: before, as most families do."""
    layer = trained("hunyuan_v1_dense")
    right(layer)
    wrong(layer.read_as(norm_after_rope=False))


def test_gpt_oss_has_sinks() -> None:
    """models/gpt_oss in eager attention; sdpa drops them silently. Wrong: without."""
    for index in (0, 1):
        layer = trained("gpt_oss", index)
        right(layer)
        wrong(layer.read_as(sinks=False))


def test_falcon_shares_keys_group_by_group() -> None:
    """models/falcon, new_decoder_architecture: rows are a group's queries, its key, its value, and
    neighbouring heads share a key. Wrong: all queries first; and every second head shares one."""
    layer = trained("falcon", new_decoder_architecture=True, num_kv_heads=2)
    spec = layer.spec
    assert (spec.heads, spec.kv_heads) == (4, 2)
    right(layer)
    wrong(layer.taken_as(blocks("query_key_value")))
    order = [0, 2, 1, 3]
    rows, width = layer.weights["q_proj.weight"], spec.head_dim
    columns = layer.weights["o_proj.weight"]
    weights = {
        **layer.weights,
        "q_proj.weight": rows.unflatten(0, (4, width))[order].flatten(0, 1),
        "o_proj.weight": columns.unflatten(1, (4, width))[:, order].flatten(1),
    }
    wrong(dataclasses.replace(layer, weights=weights))


def test_falcon_has_one_key_for_all_with_multi_query() -> None:
    """models/falcon: whatever num_kv_heads says; and the cache is of one head. Wrong: the value
    before the key, as CodeGen has it."""
    layer = trained("falcon", multi_query=True, new_decoder_architecture=False)
    assert layer.spec.heads > layer.spec.kv_heads == 1
    right(layer)
    _, present_key, present_value = layer.module()(**layer.steps[0].inputs)
    assert present_key.shape[1] == present_value.shape[1] == 1
    swapped = {**group_by_group("query_key_value")}
    swapped["k_proj"], swapped["v_proj"] = swapped["v_proj"], swapped["k_proj"]
    wrong(layer.taken_as(swapped))


def test_phi3_has_all_queries_before_the_keys() -> None:
    """models/phi3: qkv_proj is in three blocks. Wrong: head by head, a group's rows together."""
    layer = trained("phi3")
    right(layer)
    wrong(layer.taken_as(group_by_group("qkv_proj")))


DEEPSEEK_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 40.0,
    "original_max_position_embeddings": 16,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}


def test_deepseek_v3_takes_neighbours_apart() -> None:
    """models/deepseek_v3: the pairs are (2i, 2i + 1), written to halves. Wrong: halves paired. That
    the rotated features then lie in another order shows in the cache alone."""
    layer = trained("deepseek_v3")
    right(layer)
    wrong(layer.rotated_as(layout="half_split"))
    beside = layer.rotated_as(layout="interleaved")
    right(beside)
    inputs = layer.steps[0].inputs
    keys = [reading.module()(**inputs)[2] for reading in (layer, beside)]
    assert float((keys[0] - keys[1]).abs().max()) > FAR
    right(trained("deepseek_v3", rope_interleave=False))


def test_deepseek_v3_scales_by_the_square_of_its_magnitude() -> None:
    """models/deepseek_v3: (0.1 mscale_all_dim ln(factor) + 1) ** 2 on top of head_dim ** -0.5, and
    nothing on cos and sin, where both mscales are the same. Wrong: none of it, once, or on cos and
    sin as well."""
    layer = trained("deepseek_v3", rope_parameters=dict(DEEPSEEK_YARN))
    right(layer)
    assert layer.spec.rope is not None
    assert layer.spec.rope.attention_factor == 1.0
    magnitude = 1.36888794541139  # 0.1 ln 40 + 1
    plain = layer.spec.head_dim**-0.5
    assert layer.spec.softmax_scale == pytest.approx(plain * magnitude**2, rel=1e-12)
    wrong(layer.read_as(scale=plain))
    wrong(layer.read_as(scale=plain * magnitude))
    wrong(layer.rotated_as(factor_given=magnitude))


def places() -> Tensor:
    """Positions of time, height and width that have nothing to do with each other: (3, B, S)."""
    stream = torch.Generator().manual_seed(5)
    return torch.randint(0, 40, (3, 2, 12), generator=stream)


SECTIONS = (2, 3, 3)
MROPE: dict[str, tuple[Any, Any, Any, Any, Any]] = {
    "qwen2_vl": (
        Qwen2VLTextConfig,
        Qwen2VLAttention,
        Qwen2VLRotaryEmbedding,
        axes_in_blocks(SECTIONS),
        axes_in_turns(SECTIONS),
    ),
    "qwen3_vl": (
        Qwen3VLTextConfig,
        Qwen3VLTextAttention,
        Qwen3VLTextRotaryEmbedding,
        axes_in_turns(SECTIONS),
        axes_in_blocks(SECTIONS),
    ),
}


def mrope(name: str, position_ids: Tensor) -> tuple[Trained, dict[str, Any]]:
    """A call of the family's text attention, its rotation written down by hand; its config."""
    config_class, attention, rotary, axes, _ = MROPE[name]
    config = config_class(
        hidden_size=HIDDEN,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        num_hidden_layers=1,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 1e4,
            "mrope_section": list(SECTIONS),
        },
        attn_implementation="eager",
    )
    norm = NormSpec(eps=config.rms_norm_eps) if name == "qwen3_vl" else None
    spec = AttentionSpec(
        hidden_size=HIDDEN,
        heads=HEADS,
        kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        rope=DefaultRope(rotary_dim=HEAD_DIM, pair_axes=axes),
        **dict.fromkeys(("q_bias", "k_bias", "v_bias"), norm is None),
        q_norm=norm,
        k_norm=norm,
    )
    module = attention(config, layer_idx=0)
    return called(module, rotary(config), position_ids, spec), config.to_dict()


@pytest.mark.parametrize("name", MROPE)
def test_pairs_turn_with_their_own_axis(name: str) -> None:
    """Qwen2-VL, arXiv:2409.12191, section 2.1: axes in blocks of pairs; in Qwen3-VL axis after
    axis. Wrong: the other's order; time alone; height and width exchanged."""
    layer, _ = mrope(name, places())
    axes, others = MROPE[name][3:]
    assert axes != others
    right(layer)
    wrong(layer.rotated_as(pair_axes=others))
    exchanged = tuple((0, 2, 1)[axis] for axis in axes)
    wrong(layer.rotated_as(pair_axes=exchanged))
    time_alone = layer.rotated_as(pair_axes=())
    step = layer.steps[0]
    inputs = {**step.inputs, "position_ids": step.inputs["position_ids"][0]}
    wrong(dataclasses.replace(time_alone, steps=(dataclasses.replace(step, inputs=inputs),)))


@pytest.mark.parametrize("name", MROPE)
def test_text_alone_turns_as_with_one_axis(name: str) -> None:
    """Where the axes are the same, as for text, the order of the axes cannot be seen."""
    layer, _ = mrope(name, up_to(30).expand(3, 2, 12).contiguous())
    right(layer)
    right(layer.rotated_as(pair_axes=MROPE[name][4]))


@pytest.mark.parametrize("name", MROPE)
def test_axes_are_read_from_the_config(name: str) -> None:
    if f"{name}_text" not in every_family():
        pytest.skip(f"{name}_text is not a family of rope_export")
    layer, config = mrope(name, places())
    read = dataclasses.replace(layer, spec=AttentionSpec.from_hf(config))
    right(read)
    assert read.spec.rope is not None
    assert read.spec.rope.pair_axes == MROPE[name][3]

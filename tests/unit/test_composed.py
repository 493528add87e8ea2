"""Layers composed into a model: one rotation and one visibility for all, lowered at any depth."""

import dataclasses

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from rope_export import AttentionSpec, RotaryAttention
from rope_export.attention.request import Cache, cache_of
from rope_export.checkpoints.drawn import drawn_weights
from rope_export.errors import InputError
from rope_export.exporter.translation import translate
from rope_export.interface import TOTAL, CachePair, Interface, TensorType
from rope_export.lowerings import lowered, lowerings
from rope_export.rope.default import DefaultRope
from rope_export.spec import LatentSpec, PositionScale

SPEC = AttentionSpec(
    hidden_size=64, heads=4, kv_heads=2, head_dim=16, rope=DefaultRope(rotary_dim=16)
)
MLA = AttentionSpec(
    hidden_size=64,
    heads=4,
    kv_heads=4,
    head_dim=24,
    value_dim=12,
    latent=LatentSpec(q_rank=None, kv_rank=24, nope_dim=16, rope_dim=8),
    rope=DefaultRope(rotary_dim=8),
)


def drawn_layer(spec: AttentionSpec, seed: int) -> RotaryAttention:
    return RotaryAttention.from_weights(spec, drawn_weights(spec, seed))


class Block(nn.Module):
    """A layer where a model has it: inside of something, with a residual around it."""

    def __init__(self, attention: RotaryAttention) -> None:
        super().__init__()
        self.attention = attention


class Model(nn.Module):
    """Layers in sequence. share: rotation and visibility are computed once, by the first layer."""

    def __init__(self, specs: list[AttentionSpec], share: bool) -> None:
        super().__init__()
        self.share = share
        self.blocks = nn.ModuleList(Block(drawn_layer(x, at)) for at, x in enumerate(specs))

    @property
    def layers(self) -> list[RotaryAttention]:
        return [block.attention for block in self.blocks]

    def forward(
        self,
        hidden_states: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor,
        first_key: Tensor,
        first_value: Tensor,
        second_key: Tensor,
        second_value: Tensor,
        cache_lengths: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        presents: list[Tensor] = []
        pairs = [(first_key, first_value), (second_key, second_value)]
        caches = [self.tensors_of(*pair, cache_lengths) for pair in pairs]
        first, cache = self.layers[0], cache_of(**caches[0])
        shared = {}
        if self.share:
            shared = {
                "rotation": first.rotation(position_ids, hidden_states.dtype),
                "visibility": first.visibility(hidden_states, cache, attention_mask),
            }
        own = {"position_ids": position_ids, "attention_mask": attention_mask}
        for layer, own_cache in zip(self.layers, caches, strict=True):
            output, *present = layer(hidden_states, **(shared or own), **own_cache)
            hidden_states = hidden_states + output
            presents += present
        return hidden_states, *presents

    def tensors_of(self, key: Tensor, value: Tensor, lengths: Tensor | None) -> dict[str, Tensor]:
        if lengths is None:
            return {"past_key": key, "past_value": value}
        return {"key_cache": key, "value_cache": value, "cache_lengths": lengths}


def interface_of(spec: AttentionSpec, cache: str) -> Interface:
    """The tensors of `Model` with caches."""
    slots, after = ("capacity", "capacity") if cache == "fixed" else ("past", TOTAL)
    covered = "capacity" if cache == "fixed" else "total"

    def tensor(name: str, *shape: int | str, dtype: str = "int64") -> TensorType:
        return TensorType(name=name, dtype=dtype, shape=shape)

    def cached(name: str, axis: str) -> TensorType:
        return tensor(name, "batch", spec.kv_heads, axis, spec.head_dim, dtype="float32")

    names = [f"{layer}_{part}" for layer in ("first", "second") for part in ("key", "value")]
    pairs = [(name, f"{name}_out") for name in names]
    lengths = [tensor("cache_lengths", "batch")] if cache == "fixed" else []
    hidden = ("batch", "sequence", spec.hidden_size)
    return Interface(
        inputs=(
            tensor("hidden_states", *hidden, dtype="float32"),
            tensor("position_ids", "batch", "sequence"),
            tensor("attention_mask", "batch", covered),
            *(cached(name, slots) for name, _ in pairs),
            *lengths,
        ),
        outputs=(
            tensor("output", *hidden, dtype="float32"),
            *(cached(name, after) for _, name in pairs),
        ),
        caches=tuple(CachePair(input=name, output=out, axis=2) for name, out in pairs),
        main_input="hidden_states",
        main_output="output",
        positions="position_ids",
        lengths="cache_lengths" if cache == "fixed" else None,
        mask="attention_mask",
    )


def inputs_of(interface: Interface) -> dict[str, np.ndarray]:
    """Two rows of three tokens on five slots, one row padded on the left."""
    stream = np.random.default_rng(0)
    sizes = {"batch": 2, "sequence": 3, "past": 5, "total": 8, "capacity": 11}
    inputs = {
        tensor.name: stream.standard_normal(tensor.sized(sizes)).astype(np.float32)
        for tensor in interface.inputs
    }
    inputs["position_ids"] = np.tile(np.arange(5, 8), (2, 1))
    mask = np.ones(inputs["attention_mask"].shape, np.int64)
    mask[0, :2] = 0
    inputs["attention_mask"] = mask
    if interface.lengths is not None:
        inputs[interface.lengths] = np.array([5, 2])
    return inputs


@pytest.mark.parametrize(
    ("lowering", "cache"),
    [
        ("portable", "growing"),
        ("standard", "growing"),
        ("ort", "fixed"),
        ("tensorrt", "fixed"),
        pytest.param("standard", "fixed", marks=pytest.mark.long),
        pytest.param("ort", "growing", marks=pytest.mark.long),
        pytest.param("tensorrt", "growing", marks=pytest.mark.long),
    ],
)
def test_two_layers_share_what_is_computed_once(lowering: str, cache: str) -> None:
    specs = [SPEC, SPEC]
    interface, way = interface_of(SPEC, cache), lowerings()[lowering]
    inputs = inputs_of(interface)
    with torch.no_grad():
        tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
        expected = [x.numpy() for x in Model(specs, share=False)(**tensors)]
        shared = [x.numpy() for x in Model(specs, share=True)(**tensors)]
    for once, twice in zip(shared, expected, strict=True):
        np.testing.assert_array_equal(once, twice)

    model = translate(lowered(Model(specs, share=True), way, cache), interface, 24)
    kinds = [node.op_type for node in model.graph]
    assert (kinds.count("Cos"), kinds.count("Sin")) == (1, 1)
    # The mask becomes one comparison with the tokens' own slots, whatever form it is handed on in.
    assert kinds.count("LessOrEqual") + kinds.count("GreaterOrEqual") == 1
    assert not {"Transpose"} & {n.op_type for n in model.graph if _is_weight(n.inputs[0])}
    counted = [node.inputs[5:7] for node in model.graph if node.op_type == "GroupQueryAttention"]
    assert all(counts == counted[0] for counts in counted)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        ir.serde.serialize_model(model).SerializeToString(), options
    )
    for computed, wanted in zip(session.run(None, inputs), expected, strict=True):
        if cache == "fixed" and wanted.ndim == 4:
            computed, wanted = computed[0, :, :8], wanted[0, :, :8]
        # Two layers, sums of 64 terms of order 1.
        np.testing.assert_allclose(computed, wanted, rtol=0, atol=128 * 2**-23)


def _is_weight(value: ir.Value | None) -> bool:
    return value is not None and value.is_initializer()


def test_torch_export_and_compile_take_a_model_that_shares() -> None:
    interface = interface_of(SPEC, "growing")
    tensors = {name: torch.from_numpy(value) for name, value in inputs_of(interface).items()}
    model = Model([SPEC, SPEC], share=True)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        for computed, wanted in zip(compiled(**tensors), model(**tensors), strict=True):
            torch.testing.assert_close(computed, wanted)


LAYERS = {
    "window": dataclasses.replace(SPEC, window=4),
    "chunk": dataclasses.replace(SPEC, chunk=4),
    "positions": dataclasses.replace(
        SPEC, position_scale=PositionScale(beta=0.1, length=4), q_bias=True
    ),
    "no rotation": dataclasses.replace(SPEC, rope=None),
    "MLA": MLA,
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("cache", ["growing", "fixed"])
def test_what_is_handed_in_is_what_the_layer_computes_itself(name: str, cache: str) -> None:
    spec = LAYERS[name]
    layer = drawn_layer(spec, 0)
    hidden = torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(0))
    positions = torch.arange(5, 8).expand(2, 3)
    slots = 5 if cache == "growing" else 11
    mask = torch.ones(2, slots if cache == "fixed" else 8, dtype=torch.int64)
    mask[0, :2] = 0
    own, made = cache_tensors(spec, cache, slots)
    rotation = layer.rotation(positions, hidden.dtype)
    visibility = layer.visibility(hidden, made, mask)
    with torch.no_grad():
        expected = layer(hidden, positions, attention_mask=mask, **own)
        computed = layer(hidden, rotation=rotation, visibility=visibility, **own)
    for one, other in zip(computed, expected, strict=True):
        assert torch.equal(one, other)


def cache_tensors(spec: AttentionSpec, cache: str, slots: int) -> tuple[dict[str, Tensor], Cache]:
    names, shapes = ("key", "value"), [(2, 2, slots, 16)] * 2
    if spec.latent is not None:
        names, shapes = ("latent", "key_rope"), [(2, slots, 24), (2, slots, 8)]
    stream = torch.Generator().manual_seed(1)
    pair = [torch.randn(shape, generator=stream) for shape in shapes]
    if cache == "growing":
        own = {f"past_{name}": x for name, x in zip(names, pair, strict=True)}
        return own, cache_of(*pair)
    lengths = torch.tensor([5, 2])
    own = {f"{name}_cache": x for name, x in zip(names, pair, strict=True)}
    return own | {"cache_lengths": lengths}, cache_of(None, None, *pair, lengths)


def test_inputs_that_contradict_each_other_are_refused() -> None:
    layer, other = drawn_layer(SPEC, 0), drawn_layer(LAYERS["window"], 0)
    hidden, positions = torch.zeros(1, 3, 64), torch.arange(3)[None]
    mask, key = torch.ones(1, 3, dtype=torch.int64), torch.zeros(1, 2, 4, 16)
    rotation = layer.rotation(positions, hidden.dtype)
    visibility = layer.visibility(hidden, cache_of(), None)
    with pytest.raises(TypeError, match="rotation and position_ids"):
        layer(hidden, positions, rotation=rotation)
    with pytest.raises(TypeError, match="visibility and attention_mask"):
        layer(hidden, positions, attention_mask=mask, visibility=visibility)
    with pytest.raises(ValueError, match="visibility is that of another spec"):
        other(hidden, positions, visibility=visibility)
    slower = drawn_layer(
        dataclasses.replace(SPEC, rope=DefaultRope(rotary_dim=16, theta=500_000.0)), 0
    )
    with pytest.raises(ValueError, match="rotation is that of another spec"):
        slower(hidden, rotation=rotation)
    with pytest.raises(TypeError, match="a cache is both of its past tensors"):
        layer(hidden, positions, past_key=key)
    with pytest.raises(TypeError, match="with cache_lengths"):
        layer(hidden, positions, key_cache=key, value_cache=key)


def test_every_layer_of_a_model_is_lowered_or_none() -> None:
    model = Model([SPEC, LAYERS["window"]], share=False)
    outside = model.outside = nn.Linear(64, 64)
    assert lowered(model, lowerings()["ort"], "growing") is model
    for layer in model.layers:
        assert layer.operators.heads_axis == 2
        assert not any(isinstance(module, nn.Linear) for module in layer.modules())
    assert model.outside is outside
    mixed = Model([SPEC, MLA], share=False)
    with pytest.raises(InputError, match=r"blocks\.1\.attention: .*cannot express latent"):
        lowered(mixed, lowerings()["ort"], "growing")
    assert all(isinstance(layer.get_submodule("o_proj"), nn.Linear) for layer in mixed.layers)

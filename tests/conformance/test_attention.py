"""RotaryAttention under torch's compilers, and against the attention of each family."""

import pytest
import torch
from transformers import AutoConfig, DynamicCache
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from rope_export import AttentionSpec, RotaryAttention
from rope_export.errors import CheckpointError
from tests.conformance.families.cache import cache_name
from tests.unit.test_rope import PAIRED, layer

VARIANTS = {
    "grouped": {},
    "one head each": {"kv_heads": 4},
    "interleaved": {"rope": PAIRED},
    "biases": {"q_bias": True, "k_bias": True, "v_bias": True, "o_bias": True},
}


def call(batch: int, sequence: int, past: int) -> tuple[torch.Tensor, ...]:
    mask = torch.ones(batch, past + sequence, dtype=torch.int64)
    mask[0, :1] = 0
    return (
        torch.randn(batch, sequence, 64),
        past + torch.arange(sequence).expand(batch, sequence).contiguous(),
        torch.randn(batch, 2, past, 16),
        torch.randn(batch, 2, past, 16),
        mask,
    )


OTHER_SIZES = [(1, 1, 4), (3, 4, 2), (2, 9, 0)]


def same(found: tuple[torch.Tensor, ...], expected: tuple[torch.Tensor, ...]) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=32 * 2**-23)


def test_torch_export_keeps_every_axis() -> None:
    module = layer()
    batch, sequence, past, total = (
        torch.export.Dim(name) for name in ("batch", "sequence", "past", "total")
    )
    shapes = ({0: batch, 1: sequence},) * 2 + ({0: batch, 2: past},) * 2 + ({0: batch, 1: total},)
    program = torch.export.export(module, call(2, 3, 5), dynamic_shapes=shapes).module()
    for sizes in OTHER_SIZES:
        inputs = call(*sizes)
        same(program(*inputs), module(*inputs))


def test_torch_compile_takes_the_whole_graph() -> None:
    module = layer()
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="eager")
    for sizes in [(2, 3, 5), *OTHER_SIZES]:
        inputs = call(*sizes)
        with torch.no_grad():
            same(compiled(*inputs), module(*inputs))


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.trace_method:DeprecationWarning")
def test_torch_jit_trace_keeps_every_axis() -> None:
    module = layer()
    traced = torch.jit.trace(module, call(2, 3, 5))
    for sizes in OTHER_SIZES:
        inputs = call(*sizes)
        same(traced(*inputs), module(*inputs))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_split_prefill_is_the_whole_one(variant) -> None:
    module = layer(**VARIANTS[variant])
    hidden, positions = torch.randn(2, 9, 64), torch.arange(9).expand(2, 9)
    whole, key, value = module(hidden, positions)
    first = module(hidden[:, :5], positions[:, :5])
    second = module(hidden[:, 5:], positions[:, 5:], *first[1:])
    same((torch.cat((first[0], second[0]), 1), *second[1:]), (whole, key, value))


def test_a_token_that_sees_nothing_gives_zero() -> None:
    hidden, positions, *_ = call(2, 4, 0)
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    output, *_ = layer()(hidden, positions, attention_mask=mask)
    assert torch.count_nonzero(output[0, :2]) == 0
    assert torch.count_nonzero(output) == output.numel() - 2 * 64


def test_a_mask_of_another_width_is_refused() -> None:
    hidden, positions, key, value, _ = call(2, 4, 3)
    with pytest.raises(RuntimeError, match="attention_mask must cover past"):
        layer()(hidden, positions, key, value, torch.ones(2, 1, dtype=torch.int64))


@pytest.mark.parametrize("fault", ["missing", "unknown", "misshapen"])
def test_weights_must_fit_the_spec(fault) -> None:
    spec, weights = layer().spec, dict(layer().state_dict())
    if fault == "missing":
        del weights["k_proj.weight"]
    elif fault == "unknown":
        weights["k_proj.bias"] = torch.zeros(32)
    else:
        weights["k_proj.weight"] = weights["k_proj.weight"].t()
    with pytest.raises(CheckpointError, match=r"k_proj\."):
        RotaryAttention.from_weights(spec, weights)


FAMILIES = {
    "llama": {"attention_bias": True},
    "llama, linear": {"rope_parameters": {"rope_type": "linear", "factor": 3.0}},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "glm": {"head_dim": 16, "pad_token_id": 0},
    "granite": {"attention_multiplier": 0.3},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_family_equals_transformers(name, monkeypatch) -> None:
    """A tiny random layer of the family, on a cache, with both softmaxes in float64."""
    softmax = torch.nn.functional.softmax
    monkeypatch.setattr(
        torch.nn.functional, "softmax", lambda x, dim, dtype=None: softmax(x, dim=dim)
    )
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = AutoConfig.for_model(name.partition(",")[0], **sizes, **FAMILIES[name])
    config.num_hidden_layers = 1
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    config.vocab_size = config.intermediate_size = 32
    model = MODEL_MAPPING[type(config)](config).eval().double()
    theirs = model.layers[0].self_attn
    spec = AttentionSpec.from_hf(config)
    ours = RotaryAttention.from_weights(spec, dict(theirs.state_dict())).double()
    hidden = torch.randn(2, 7, 64, dtype=torch.float64)
    positions = torch.tensor([[0, 0, 0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5, 6]])
    padding = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7])
    cache, past = DynamicCache(config=config), (None, None)
    for at in (slice(0, 4), slice(4, 5), slice(5, 7)):
        slots, own = torch.arange(at.stop), torch.arange(at.start, at.stop)
        seen = (slots <= own[:, None]) & (padding[:, None, : at.stop] == 1)
        mask = torch.where(seen, 0.0, -torch.inf)[:, None].double()
        with torch.no_grad():
            turn = model.rotary_emb(hidden, positions[:, at])
            expected, _ = theirs(
                hidden_states=hidden[:, at],
                position_embeddings=turn,
                attention_mask=mask,
                **{cache_name(theirs.forward): cache},
            )
            found, *past = ours(hidden[:, at], positions[:, at], *past, padding[:, : at.stop])
        attended = seen.any(-1)
        error = (found - expected)[attended].norm() / expected[attended].norm()
        assert error < 1e-12

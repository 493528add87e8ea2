"""What rounding may do to a model of transformers, derived from its operations."""

import numpy as np
import pytest
import torch
from torch import nn

from rope_export.parity.bounds import TIMES, UNIT_ROUNDOFF
from rope_export.parity.decoder.exact import Float64, Widened, mark_angles
from rope_export.parity.decoder.roundings import Roundings
from rope_export.reading.models import eager, quiet

transformers = pytest.importorskip("transformers")

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 64,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES = {
    "llama": transformers.LlamaConfig(**SMALL),
    "gemma2": transformers.Gemma2Config(**SMALL, sliding_window=4, query_pre_attn_scalar=16),
    "qwen3": transformers.Qwen3Config(**SMALL),
    "mixtral": transformers.MixtralConfig(**SMALL, num_local_experts=4),
    "gpt_oss": transformers.GptOssConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2),
    "llama4": transformers.Llama4TextConfig(
        **SMALL, intermediate_size_mlp=96, num_local_experts=2, rope_parameters=None
    ),
    "gpt_neox": transformers.GPTNeoXConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        vocab_size=64,
    ),
}  # fmt: skip


def model_of(family: str, dtype: str, seed: int = 0) -> nn.Module:
    """A small model with weights that give outputs of about 1."""
    torch.manual_seed(seed)
    config = FAMILIES[family]
    eager(config)
    with quiet(), torch.no_grad():
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, parameter.shape[-1] ** -0.5)
        mark_angles(model)
        return model.to(getattr(torch, dtype)).eval().requires_grad_(False)


def ids_of(seed: int, rows: int = 3, tokens: int = 9) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(3, 64, (rows, tokens)))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", UNIT_ROUNDOFF)
def test_eager_is_within_its_ceiling_and_not_far_below(family, dtype):
    """Of the first layer's output, for 8 sound draws: none above, and none idle."""
    shares = []
    for seed in range(8 if dtype == "float32" else 2):
        model, ids = model_of(family, dtype, seed), ids_of(seed)
        layer, seen = layers_of(model)[0], {}
        layer.register_forward_pre_hook(
            lambda _, args, kwargs, seen=seen: seen.setdefault("call", (args, kwargs)),
            with_kwargs=True,
        )
        widened = Widened(model.parameters())
        model(ids, use_cache=False)
        args, kwargs = seen.pop("call")
        with Float64(widened):
            model(ids, use_cache=False)
        _, wide = seen.pop("call")
        rounded = first(layer(*args, **kwargs))
        with Roundings(widened, dtype) as roundings:
            exact = first(layer(args[0].double(), *args[1:], **wide))
            deviation = roundings.squares(exact).sqrt()
        assert not roundings.unknown
        shares.append(((rounded.double() - exact).abs() / deviation).numpy())
    assert np.max(shares) < TIMES / 2
    assert np.sqrt(np.mean(np.square(shares))) > 1 / TIMES


def layers_of(model: nn.Module) -> nn.ModuleList:
    return next(x for x in model.modules() if isinstance(x, nn.ModuleList) and len(x) == 2)


def first(output):
    return output[0] if isinstance(output, tuple) else output


def test_a_model_in_float64_is_exact_but_for_its_angles():
    """Norm, rotation, attention and MLP of a llama layer, written down in numpy."""
    model = model_of("llama", "float32")
    layer, seen = model.model.layers[0], {}
    layer.register_forward_pre_hook(lambda _, args: seen.setdefault("before", args[0]))
    layer.register_forward_hook(lambda _, args, result: seen.setdefault("after", result))
    with Float64(Widened(model.parameters())):
        model(ids_of(0, rows=1), use_cache=False)
    x, weights = (
        seen["before"][0].double().numpy(),
        {k: v.double().numpy() for k, v in layer.state_dict().items()},
    )
    angles = np.arange(9, dtype=np.float32)[:, None] * model.model.rotary_emb.inv_freq.numpy()
    attended = x + attention(
        norm(x) * weights["input_layernorm.weight"], weights, angles.astype(float)
    )
    y = norm(attended) * weights["post_attention_layernorm.weight"]
    gate, up = (y @ weights[f"mlp.{name}_proj.weight"].T for name in ("gate", "up"))
    expected = attended + (gate / (1 + np.exp(-gate)) * up) @ weights["mlp.down_proj.weight"].T
    assert np.max(np.abs(seen["after"][0].numpy() - expected)) < 1e-12 * np.max(np.abs(expected))
    assert seen["after"].dtype is torch.float64


def norm(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6)


def attention(x: np.ndarray, weights: dict[str, np.ndarray], angles: np.ndarray) -> np.ndarray:
    """Two query heads share a head of keys; 4 heads of 16."""
    q, k, v = (
        (x @ weights[f"self_attn.{name}_proj.weight"].T).reshape(len(x), -1, 16).swapaxes(0, 1)
        for name in "qkv"
    )
    cos, sin = np.tile(np.cos(angles), 2), np.tile(np.sin(angles), 2)
    q, k = (z * cos + np.concatenate((-z[..., 8:], z[..., :8]), axis=-1) * sin for z in (q, k))
    k, v = np.repeat(k, 2, axis=0), np.repeat(v, 2, axis=0)
    scores = q @ k.swapaxes(1, 2) / 4
    scores = np.where(np.tri(len(x), dtype=bool), scores, -np.inf)
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
    heads = (shares / shares.sum(axis=-1, keepdims=True)) @ v
    return heads.swapaxes(0, 1).reshape(len(x), -1) @ weights["self_attn.o_proj.weight"].T


def test_a_sum_that_grows_may_be_off_by_more_than_one_that_does_not():
    """256 products of one sign: each partial sum is rounded at its own size."""
    with Roundings(Widened(()), "float32") as roundings:
        same = torch.ones(1, 256) @ torch.ones(256, 1)
        both = torch.ones(1, 256) @ torch.tensor([1.0, -1.0]).repeat(128)[:, None]
        wide, narrow = (float(roundings.squares(x).sqrt()) for x in (same, both))
    u = UNIT_ROUNDOFF["float32"]
    assert narrow == pytest.approx(u * np.sqrt(256 * 256 / 2), rel=1e-6)
    assert wide == pytest.approx(u * np.sqrt(256 * (256**2 + 256) / 2 + 2 * 256**2), rel=1e-6)


def test_an_operation_without_a_rule_is_named():
    with Roundings(Widened(()), "float32") as roundings:
        torch.special.i0(torch.ones(2, 2) @ torch.ones(2, 2))
    assert roundings.unknown == {"special_i0"} or roundings.unknown == {"i0"}


def test_the_margin_of_a_choice_is_in_deviations():
    scores = torch.tensor([[3.0, 1.0, 2.0, -1.0]])
    with Roundings(Widened(()), "float32") as roundings:
        made = scores * torch.ones(4) * 1.5
        torch.topk(made, 2, dim=-1)
        squares = roundings.squares(made)
    expected = (3.0 - 1.5) / float((squares[0, 2] + squares[0, 1]).sqrt())
    assert float(roundings.margins[0]) == pytest.approx(expected)


def test_a_kernel_that_rounds_to_int8_has_wider_bounds():
    """A block of two features has the step of its largest, 1/127 of that; half of it is the most
    that one feature is off by."""
    weight = nn.Parameter(torch.eye(4), requires_grad=False)
    x = torch.tensor([[4.0, 1.0, -0.5, 0.25]])
    widened = Widened([weight])
    squares = []
    for blocks in ({}, {weight.data_ptr(): 2}):
        with Roundings(widened, "float32", blocks) as roundings:
            squares.append(roundings.squares(torch.nn.functional.linear(x, weight)))
    most = np.array([4.0, 4.0, 0.5, 0.5]) / 127 / 2
    np.testing.assert_allclose((squares[1] - squares[0])[0], 2 * most**2, rtol=1e-6)


def test_a_complex_rotation_has_the_bounds_of_its_cosines_and_sines() -> None:
    """Llama 4 and DeepSeek rotate by complex numbers: each part is a sum of two products."""
    stream = torch.Generator().manual_seed(0)
    x = torch.randn(5, 8, 2, generator=stream, dtype=torch.float64)
    angles = torch.randn(5, 8, generator=stream, dtype=torch.float64)
    with Roundings(Widened([]), "float32") as mode:
        scaled = x * 1.5  # from here on it has an error
        cos, sin = angles.cos(), angles.sin()
        first, second = scaled.unbind(-1)
        plain = torch.stack((first * cos - second * sin, first * sin + second * cos), dim=-1)
        turned = torch.view_as_complex(scaled) * torch.polar(torch.ones_like(angles), angles)
        rotated = torch.view_as_real(turned)
        torch.testing.assert_close(rotated, plain)
        torch.testing.assert_close(mode.squares(rotated), mode.squares(plain))
        assert not mode.unknown

"""The layers that faults are planted in: tiny ones, each with a feature as models have it."""

from typing import Any

from rope_export.rope.default import DefaultRope
from rope_export.rope.dynamic import DynamicRope
from rope_export.rope.llama3 import Llama3Rope
from rope_export.rope.longrope import LongRope
from rope_export.rope.yarn import YarnRope
from rope_export.spec import AttentionSpec, LatentSpec, NormSpec, PositionScale

HALF = DefaultRope(rotary_dim=16)
PLAIN: dict[str, Any] = {
    "hidden_size": 64,
    "heads": 4,
    "kv_heads": 2,
    "head_dim": 16,
    "rope": HALF,
}
FACTORS = tuple(1 + 0.05 * pair for pair in range(8)), tuple(1.5 + 0.7 * pair for pair in range(8))
NORM = NormSpec()

LAYERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias": {"q_bias": True, "k_bias": True, "v_bias": True, "o_bias": True},
    "softcap 50": {"softcap": 50.0, "scale": 1 / 16},
    "window 8": {"window": 8},
    "window 4096": {"window": 4_096},
    "chunk 8": {"chunk": 8},
    "sinks, window 8": {"sinks": True, "window": 8},
    "q and k norm": {"q_norm": NORM, "k_norm": NORM},
    "norm 1 + w": {"q_norm": NormSpec(offset=1.0), "k_norm": NormSpec(offset=1.0)},
    "norm after rope": {"q_norm": NORM, "k_norm": NORM, "norm_after_rope": True},
    "full norm": {"q_norm": NormSpec(over="all"), "k_norm": NormSpec(over="all")},
    "output norm": {"o_norm": NORM},
    "clip 8": {"clip": 8.0},
    "gate": {"gate": "head"},
    "value scale": {"value_scale": 0.707},
    "position scale": {"position_scale": PositionScale(beta=0.1, length=8_192)},
    "interleaved": {"rope": DefaultRope(rotary_dim=16, layout="interleaved")},
    "permuted": {"rope": DefaultRope(rotary_dim=16, layout="permuted")},
    "partial": {"rope": DefaultRope(rotary_dim=8)},
    "clockwise": {"rope": DefaultRope(rotary_dim=16, clockwise=True)},
    "three axes": {"rope": DefaultRope(rotary_dim=16, pair_axes=(0, 0, 1, 1, 1, 2, 2, 2))},
    "NoPE": {"rope": None},
    "yarn": {"rope": YarnRope(rotary_dim=16, factor=4.0, original_length=64)},
    "llama3": {
        "rope": Llama3Rope(
            rotary_dim=16, factor=8.0, low_turns=1.0, high_turns=4.0, original_length=8_192
        )
    },
    "longrope": {
        "rope": LongRope(
            rotary_dim=16,
            short_factor=FACTORS[0],
            long_factor=FACTORS[1],
            factor=32.0,
            original_length=4_096,
        )
    },
    "dynamic": {"rope": DynamicRope(rotary_dim=16, factor=4.0, max_position_embeddings=2_048)},
    "bidirectional": {"causal": False},
    "bidirectional, window 4": {"causal": False, "window": 5, "window_after": 4},
    "latent": {
        "kv_heads": 4,
        "head_dim": 24,
        "value_dim": 12,
        "rope": DefaultRope(rotary_dim=8, layout="permuted"),
        "latent": LatentSpec(q_rank=32, kv_rank=24, nope_dim=16, rope_dim=8, kv_factor=0.5),
    },
    "one key head": {"kv_heads": 1},
}


def layer(name: str, dtype: str) -> AttentionSpec:
    """The layer of that name."""
    return AttentionSpec(**{**PLAIN, **LAYERS[name], "dtype": dtype})

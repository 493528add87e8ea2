"""Layers that a lowering can express: small shapes, and a few features at a time."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from rope_export.errors import SpecError, extra
from rope_export.fuzz.rope_strategies import rotations
from rope_export.lowerings import Lowering, refusal
from rope_export.rope.default import DefaultRope
from rope_export.spec import AttentionSpec, LatentSpec, NormSpec, PositionScale

with extra("fuzz", "drawing examples"):
    from hypothesis import assume
    from hypothesis import strategies as st

HEAD_DIMS = (2, 4, 6, 8, 16, 24, 32, 80)
"""Widths of a head, of which each lowering has those that it takes."""

TOGETHER = 4
"""Features beside the rotation that one layer has at most."""

Draw = Any


@st.composite
def layers(draw: Draw, lowering: Lowering, cache: str, dtype: str = "float32") -> AttentionSpec:
    """The spec of a layer. Shrinks to one head of the smallest width, without a feature."""
    able = lowering.features
    names = [name for name, kinds in NEEDS.items() if kinds <= able]
    chosen = draw(st.sets(st.sampled_from(names), max_size=TOGETHER)) if names else set()
    if cache != "none":
        chosen -= {"bidirectional"}
    facts: dict[str, Any] = {
        "hidden_size": draw(st.integers(1, 40)),
        "kv_heads": draw(st.integers(1, 3)),
        "head_dim": draw(st.sampled_from(_head_dims(lowering, cache))),
        "dtype": dtype,
    }
    latent = "latent" in chosen
    group = draw(st.integers(1, 4)) if "group" in able and not latent else 1
    facts["heads"] = facts["kv_heads"] * group
    if latent:
        facts |= draw(_latents())
    width = facts["head_dim"] if not latent else facts["latent"].rope_dim
    facts["rope"] = None if "no rotation" in chosen else draw(rotations(width, able))
    for name in sorted(chosen & FEATURES.keys()):
        facts |= FEATURES[name](draw, facts)
    try:
        spec = AttentionSpec(**facts)
    except SpecError:  # two features that no layer has together
        assume(False)
    assume(refusal(lowering, spec, cache) is None)
    return spec


def _head_dims(lowering: Lowering, cache: str) -> list[int]:
    """Those widths that a plain layer of the lowering may have."""

    def plain(width: int) -> AttentionSpec:
        rope = DefaultRope(rotary_dim=width)
        return AttentionSpec(hidden_size=8, heads=1, kv_heads=1, head_dim=width, rope=rope)

    every = [x for x in HEAD_DIMS if refusal(lowering, plain(x), cache) is None]
    return every or [max(HEAD_DIMS)]


@st.composite
def _latents(draw: Draw) -> dict[str, Any]:
    """What is different in a layer of multi-head latent attention (MLA)."""
    nope, rope = draw(st.sampled_from([4, 8, 16])), draw(st.sampled_from([2, 4, 8]))
    q_rank = draw(st.none() | st.integers(2, 12))
    latent = LatentSpec(
        q_rank=q_rank,
        kv_rank=draw(st.integers(2, 16)),
        nope_dim=nope,
        rope_dim=rope,
        a_bias=draw(st.booleans()),
        kv_factor=draw(st.sampled_from([1.0, 2.0])),
        q_factor=1.0 if q_rank is None else draw(st.sampled_from([1.0, 0.5])),
    )
    return {"latent": latent, "head_dim": nope + rope, "value_dim": draw(st.sampled_from([8, 5]))}


def _norm(draw: Draw, facts: Mapping[str, Any]) -> NormSpec:
    weight = draw(st.booleans())
    return NormSpec(
        kind=draw(st.sampled_from(["rms", "layer"])),
        eps=draw(st.sampled_from([1e-6, 1e-5])),
        over=draw(st.sampled_from(["head", "heads", "all"])),
        weight=weight,
        bias=weight and draw(st.booleans()),
        offset=draw(st.sampled_from([0.0, 1.0])) if weight else 0.0,
    )


def _norms(draw: Draw, facts: Mapping[str, Any]) -> dict[str, Any]:
    which = draw(st.sets(st.sampled_from(["q_norm", "k_norm", "v_norm", "o_norm"]), min_size=1))
    if "latent" in facts:
        which = {"o_norm"}
    return {name: _norm(draw, facts) for name in sorted(which)}


def _norm_order(draw: Draw, facts: Mapping[str, Any]) -> dict[str, Any]:
    if "latent" in facts:
        return {}
    norm = replace(_norm(draw, facts), over=draw(st.sampled_from(["head", "heads"])))
    return {"q_norm": norm, "k_norm": norm, "norm_after_rope": True}


def _biases(draw: Draw, facts: Mapping[str, Any]) -> dict[str, Any]:
    which = ["o_bias"] if "latent" in facts else ["q_bias", "k_bias", "v_bias", "o_bias"]
    return dict.fromkeys(sorted(draw(st.sets(st.sampled_from(which), min_size=1))), True)


def _gate(draw: Draw, facts: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "gate": draw(st.sampled_from(["head", "feature"])),
        "gate_kind": draw(st.sampled_from(["sigmoid", "softplus"])),
        "gate_bias": draw(st.booleans()),
    }


def _position_scale(draw: Draw, facts: Mapping[str, Any]) -> dict[str, Any]:
    form = draw(st.sampled_from(["log", "power"]))
    length = draw(st.sampled_from([4.0, 16.0, 8192.0]))
    offset = draw(st.sampled_from([0, 1]))
    return {"position_scale": PositionScale(beta=0.1, length=length, offset=offset, form=form)}


def _one(name: str, *values: Any) -> Callable[[Draw, Mapping[str, Any]], dict[str, Any]]:
    """One fact, of these values."""
    return lambda draw, facts: {name: draw(st.sampled_from(values))}


def _clip(draw: Draw, facts: Mapping[str, Any]) -> dict[str, Any]:
    return {} if "latent" in facts else {"clip": draw(st.sampled_from([1.0, 0.25, 8.0]))}


def _chunk(draw: Draw, facts: Mapping[str, Any]) -> dict[str, Any]:
    return {} if "window" in facts else {"chunk": draw(st.integers(1, 9))}


def _bidirectional(draw: Draw, facts: Mapping[str, Any]) -> dict[str, Any]:
    after = draw(st.none() | st.integers(0, 4))
    return {"causal": False} | ({} if after is None else {"window_after": after})


def _value_width(draw: Draw, facts: Mapping[str, Any]) -> dict[str, Any]:
    return {} if "latent" in facts else {"value_dim": draw(st.sampled_from([8, 3, 20]))}


FEATURES: dict[str, Callable[[Draw, Mapping[str, Any]], dict[str, Any]]] = {
    "a window": _one("window", 3, 1, 2, 7),
    "bidirectional": _bidirectional,
    "bias": _biases,
    "chunk": _chunk,
    "clip": _clip,
    "gate": _gate,
    "norm": _norms,
    "norm order": _norm_order,
    "position scale": _position_scale,
    "scale": _one("scale", 1.0, 0.0625, 2.0),
    "sinks": _one("sinks", True),
    "softcap": _one("softcap", 50.0, 1.0, 5.0),
    "value scale": _one("value_scale", 0.5, 2.0, 3.0),
    "value width": _value_width,
}
"""What each feature adds to a spec, in the order in which they are drawn."""

NEEDS: dict[str, frozenset[str]] = {
    **{name: frozenset({name}) for name in ("latent", "no rotation", *FEATURES)},
    "a window": frozenset({"window"}),
    "bidirectional": frozenset({"bidirectional", "window_after"}),
    "latent": frozenset({"latent", "latent norm", "latent factor"}),
}
"""The kinds of features of a lowering that each needs."""

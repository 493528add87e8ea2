"""The faults, each with the layer that it is planted in."""

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rope_export import RotaryAttention
from rope_export.attention import operators
from rope_export.attention.norm import Norm
from rope_export.rope.default import DefaultRope
from rope_export.rope.dynamic import DynamicRope
from rope_export.rope.longrope import LongRope
from rope_export.spec import AttentionSpec, RopeSpec
from tests.conformance.faults.cache import FAULTS as CACHE
from tests.conformance.faults.planting import (
    Fault,
    changed,
    half,
    inserted,
    normed,
    rotated,
    scaled,
)
from tests.conformance.faults.precision import FAULTS as PRECISION

ALLOWED, PROJECT = operators.allowed_slots, RotaryAttention.project
COS_SIN, GATE = RotaryAttention.cos_sin, RotaryAttention.gate


def key_heads_tiled(spec: AttentionSpec, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Query heads in the order in which they would take the key heads in turn."""
    group = spec.heads // spec.kv_heads
    order = torch.arange(spec.heads).view(group, spec.kv_heads).t().reshape(-1)
    q = weights["q_proj.weight"].unflatten(0, (spec.heads, -1))
    return weights | {"q_proj.weight": q[order].flatten(0, 1)}


def rolled(name: str, axis: int) -> Any:
    """A projection whose heads are one further."""

    def change(spec: AttentionSpec, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        width = spec.head_dim if axis == 0 else spec.value_head_dim
        return weights | {name: weights[name].roll(width, axis)}

    return change


def heads_swapped(spec: AttentionSpec, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The first two heads change places in the output projection."""
    o, width = weights["o_proj.weight"], spec.value_head_dim
    first, second, rest = o[:, :width], o[:, width : 2 * width], o[:, 2 * width :]
    return weights | {"o_proj.weight": torch.cat((second, first, rest), dim=1)}


def keys_negated(self: Any, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = PROJECT(self, hidden_states)
    return q, -k, v


def louder(self: Any, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = PROJECT(self, hidden_states)
    return q, k, v * 1.01


def narrow_angles(self: Any, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Angles in float16."""
    at = self.spec.rope.coordinates(position_ids)
    angles = half(at[..., None]) * half(self.inv_freq)
    cos, sin = half(angles).cos(), half(angles).sin()
    return cos.to(dtype), sin.to(dtype)


def narrow_frequencies(
    self: Any, position_ids: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """inv_freq in bfloat16, as a module that was cast has it."""
    angles = position_ids.float()[..., None] * self.inv_freq.bfloat16().float()
    return angles.cos().to(dtype), angles.sin().to(dtype)


def sine_negated(self: Any, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    cos, sin = COS_SIN(self, position_ids, dtype)
    return cos, -sin


def narrow_tables(self: Any, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin rounded to bfloat16."""
    cos, sin = COS_SIN(self, position_ids, dtype)
    return cos.bfloat16().to(dtype), sin.bfloat16().to(dtype)


def mask_of(change: Any) -> Any:
    """allowed_slots with another own slot, or another mask."""

    def allowed(
        sequence: int,
        total: int,
        attention_mask: Tensor | None,
        spec: AttentionSpec,
        device: torch.device,
        lengths: Tensor | None = None,
    ) -> Tensor:
        return change(sequence, total, attention_mask, spec, device, lengths)

    return [(operators, "allowed_slots", allowed)]


def inverted(s: Any, t: Any, mask: Any, *rest: Any) -> Tensor:
    return ALLOWED(s, t, None if mask is None else 1 - mask, *rest)


def ignored(s: Any, t: Any, mask: Any, *rest: Any) -> Tensor:
    return ALLOWED(s, t, None if mask is None else mask * 0 + 1, *rest)


def own_hidden(s: Any, t: Any, mask: Any, spec: Any, device: Any, lengths: Any) -> Tensor:
    """A token does not see its own slot."""
    own = torch.arange(s)[None] + (t - s if lengths is None else lengths[:, None])
    seen = ALLOWED(s, t, mask, spec, device, lengths)
    return seen & (torch.arange(t) != own[..., None])[:, None]


def from_slot_0(s: Any, t: Any, mask: Any, spec: Any, device: Any, lengths: Any) -> Tensor:
    """Chunks counted from the cache's first slot, padding or not."""
    seen = ALLOWED(s, t, None, spec, device, lengths)
    return seen if mask is None else seen & (mask != 0)[:, None, None, :]


def epsilon_outside(self: Any, x: Tensor) -> Tensor:
    """x over its root mean square plus epsilon, not the root of both."""
    wide = x.float()
    wide = wide / (torch.sqrt((wide * wide).mean(-1, keepdim=True)) + self.spec.eps)
    return (wide * (self.spec.offset + self.weight.float())).to(x.dtype)


def only_weights(self: Any, x: Tensor) -> Tensor:
    return (x.float() * self.weight.float()).to(x.dtype)


def gate_inverted(self: Any, hidden_states: Tensor) -> Tensor:
    return 1 - GATE(self, hidden_states)


def default_rope(spec: AttentionSpec) -> AttentionSpec:
    assert spec.rope is not None
    plain = DefaultRope(
        rotary_dim=spec.rope.rotary_dim, theta=spec.rope.theta, layout=spec.rope.layout
    )
    return dataclasses.replace(spec, rope=plain)


def always(length: int) -> Any:
    """Frequencies of one length, whatever the call's."""

    def of(rope: type[RopeSpec]) -> Any:
        chosen = rope.chosen
        return lambda self, table, given: chosen(self, table, torch.full_like(given, length))

    return [(rope, "chosen", of(rope)) for rope in (DynamicRope, LongRope)]


def whole_head(spec: AttentionSpec) -> AttentionSpec:
    return dataclasses.replace(spec, rope=DefaultRope(rotary_dim=spec.head_dim))


def latent_facts(**facts: Any) -> Any:
    def change(spec: AttentionSpec) -> AttentionSpec:
        assert spec.latent is not None
        return dataclasses.replace(spec, latent=dataclasses.replace(spec.latent, **facts))

    return change


def fault(name: str, first: tuple[str, ...], **how: Any) -> Fault:
    return Fault(name=name, first=first, **how)


def positions(operator: str, *constants: int) -> Any:
    return inserted("position_ids", operator, *(np.array(x) for x in constants))


def norm(forward: Any) -> Any:
    return [(Norm, "forward", forward)]


PATCH = RotaryAttention
MASK = ("mask", "probabilities", "context")
SINKS = ("probabilities", "context")
SCORES = ("scores", *SINKS)
PRODUCTS = ("products", *SCORES)
"""Tensors that are wrong first: of a lowering that has not the first of them, as none of its own
operators gives it, the next."""

LISTED: list[tuple[str, Fault]] = [
    ("softcap 50", fault("softcap removed", SCORES, spec=changed(softcap=None))),
    ("plain", fault("a window of 2,500 slots", MASK, spec=changed(window=2_500))),
    ("plain", fault("positions clipped at 131,071", ("cos",), edit=positions("Min", 131_071))),
    ("plain", fault("absolute values of positions", ("sin",), edit=positions("Abs"))),
]
"""Faults that passed once."""


def in_eager_too(one: Fault) -> Fault:
    return dataclasses.replace(one, name=f"{one.name}, in eager too", kind="module", in_module=True)


MODULE: list[tuple[str, Fault]] = [
    (layer, in_eager_too(one))
    for layer, one in (
        ("plain", fault("keys negated", ("k",), patches=[(PATCH, "project", keys_negated)])),
        ("plain", fault("values of another scale", ("v",), patches=[(PATCH, "project", louder)])),
        ("plain", fault("sine negated", ("sin",), patches=[(PATCH, "cos_sin", sine_negated)])),
        (
            "plain",
            fault(
                "frequencies in bfloat16",
                ("cos",),
                patches=[(PATCH, "cos_sin", narrow_frequencies)],
            ),
        ),
        ("plain, padding", fault("mask ignored", MASK, patches=mask_of(ignored))),
        (
            "q and k norm",
            fault("epsilon outside of the root", ("q_norm",), patches=norm(epsilon_outside)),
        ),
        (
            "q and k norm",
            fault("weights without the norm", ("q_norm",), patches=norm(only_weights)),
        ),
        (
            "gate",
            fault(
                "gate inverted",
                ("gate_proj", "gated context"),
                patches=[(PATCH, "gate", gate_inverted)],
            ),
        ),
    )
]
"""Faults of the module, which eager PyTorch has as well as the file that is made of it."""

FAULTS: list[tuple[str, Fault]] = [
    *LISTED,
    ("softcap 50", fault("softcap doubled", SCORES, spec=changed(softcap=100.0))),
    ("plain", fault("positions modulo 65,536", ("cos",), edit=positions("Mod", 65_536))),
    ("plain", fault("positions clipped at 0", ("cos",), edit=positions("Max", 0))),
    ("interleaved", fault("positions doubled", ("cos",), edit=positions("Mul", 2))),
    ("window 8", fault("window removed", MASK, spec=changed(window=None))),
    ("window 8", fault("window one slot more", MASK, spec=changed(window=9))),
    ("window 8", fault("window one slot less", MASK, spec=changed(window=7))),
    ("window 4096", fault("window removed", MASK, spec=changed(window=None))),
    ("window 4096", fault("window one slot more", MASK, spec=changed(window=4_097))),
    ("window 4096", fault("window one slot less", MASK, spec=changed(window=4_095))),
    ("chunk 8", fault("chunks removed", MASK, spec=changed(chunk=None))),
    ("chunk 8", fault("chunks of one slot more", MASK, spec=changed(chunk=9))),
    ("chunk 8, padding", fault("chunks counted from slot 0", MASK, patches=mask_of(from_slot_0))),
    ("sinks, window 8", fault("sinks dropped", SINKS, spec=changed(sinks=False))),
    ("sinks, window 8", fault("sinks of another sign", SINKS, weights=scaled(-1.0, "sinks"))),
    ("plain", fault("theta doubled", ("cos",), spec=rotated(theta=20_000.0))),
    ("plain", fault("layout swapped", ("q_rotated",), spec=rotated(layout="interleaved"))),
    ("interleaved", fault("layout swapped", ("q_rotated",), spec=rotated(layout="half_split"))),
    (
        "permuted",
        fault("rotated features left in pairs", ("q_rotated",), spec=rotated(layout="interleaved")),
    ),
    ("partial", fault("the whole head rotated", ("cos",), spec=whole_head)),
    ("clockwise", fault("counterclockwise", ("sin",), spec=rotated(clockwise=False))),
    (
        "three axes",
        fault("axes swapped", ("cos",), spec=rotated(pair_axes=(0, 0, 2, 2, 2, 1, 1, 1))),
    ),
    ("plain", fault("sine negated", ("sin",), patches=[(PATCH, "cos_sin", sine_negated)])),
    *[
        (
            "plain",
            fault(name, ("cos",), kind="precision", patches=[(PATCH, "cos_sin", cos_sin)]),
        )
        for name, cos_sin in (
            ("angles in float16", narrow_angles),
            ("frequencies in bfloat16", narrow_frequencies),
            ("cos and sin cast to bfloat16", narrow_tables),
        )
    ],
    ("yarn", fault("attention factor 1", ("cos",), spec=rotated(factor_given=1.0))),
    ("yarn", fault("default frequencies", ("cos",), spec=default_rope)),
    ("llama3", fault("default frequencies", ("cos",), spec=default_rope)),
    ("longrope", fault("short factors at any length", ("cos",), patches=always(1))),
    ("longrope", fault("long factors at any length", ("cos",), patches=always(10_000))),
    ("longrope", fault("switch one position late", ("cos",), spec=rotated(original_length=4_097))),
    ("dynamic", fault("base never grown", ("cos",), patches=always(1))),
    ("plain, no cache", fault("causality dropped", MASK, spec=changed(causal=False))),
    ("bidirectional", fault("causal", MASK, spec=changed(causal=True))),
    (
        "bidirectional, window 4",
        fault("every later slot seen", MASK, spec=changed(window_after=None)),
    ),
    ("plain, padding", fault("mask inverted", MASK, patches=mask_of(inverted))),
    ("plain, padding", fault("own slot not seen", MASK, patches=mask_of(own_hidden))),
    ("plain, padding", fault("mask ignored", MASK, patches=mask_of(ignored))),
    ("plain", fault("keys negated", ("k",), patches=[(PATCH, "project", keys_negated)])),
    ("plain", fault("query heads one further", ("q_proj",), weights=rolled("q_proj.weight", 0))),
    ("plain", fault("two heads swapped at the output", ("o_proj",), weights=heads_swapped)),
    ("plain", fault("key heads in turn, not in groups", ("q_proj",), weights=key_heads_tiled)),
    ("plain", fault("scale 1", PRODUCTS, spec=changed(scale=1.0))),
    ("one key head", fault("scale of the hidden size", PRODUCTS, spec=changed(scale=64**-0.5))),
    *[
        ("bias", fault(f"{x} bias dropped", (f"{x}_proj",), weights=scaled(0.0, f"{x}_proj.bias")))
        for x in "qkvo"
    ],
    ("q and k norm", fault("epsilon times 10", ("q_norm",), spec=normed(eps=1e-5))),
    (
        "q and k norm",
        fault("epsilon outside of the root", ("q_norm",), patches=norm(epsilon_outside)),
    ),
    ("q and k norm", fault("norms left out", ("q_norm",), spec=changed(q_norm=None, k_norm=None))),
    ("q and k norm", fault("weights without the norm", ("q_norm",), patches=norm(only_weights))),
    ("q and k norm", fault("layer norm", ("q_norm",), spec=normed(kind="layer"))),
    ("norm 1 + w", fault("norm without its offset", ("q_norm",), spec=normed(offset=0.0))),
    (
        "norm after rope",
        fault("norms before the rotation", ("q",), spec=changed(norm_after_rope=False)),
    ),
    ("output norm", fault("output norm left out", ("o_norm",), spec=changed(o_norm=None))),
    ("clip 8", fault("clip left out", ("q",), spec=changed(clip=None))),
    ("gate", fault("gate left out", ("gate_proj", "gated context"), spec=changed(gate=None))),
    (
        "gate",
        fault(
            "gate inverted",
            ("gate_proj", "gated context"),
            patches=[(PATCH, "gate", gate_inverted)],
        ),
    ),
    (
        "gate",
        fault(
            "softplus for the sigmoid",
            ("gate_proj", "gated context"),
            spec=changed(gate_kind="softplus"),
        ),
    ),
    ("value scale", fault("value scale 1", ("v",), spec=changed(value_scale=1.0))),
    (
        "position scale",
        fault("position scale left out", ("q_scaled",), spec=changed(position_scale=None)),
    ),
    (
        "latent",
        fault(
            "latent epsilon times 10", ("q_a_norm", "kv_a_norm"), spec=latent_facts(norm_eps=1e-5)
        ),
    ),
    ("latent", fault("latent factor 1", ("kv_a_norm",), spec=latent_facts(kv_factor=1.0))),
    ("latent", fault("layout swapped", ("q_rotated",), spec=rotated(layout="half_split"))),
    ("window 8, fixed", fault("window one slot more", MASK, spec=changed(window=9))),
    *CACHE,
    *PRECISION,
    *MODULE,
    ("plain", fault("scale off by 2^-22", PRODUCTS, spec=changed(scale=0.25 * (1 + 2.0**-22)))),
    ("plain", fault("theta off by 2^-22", ("cos",), spec=rotated(theta=10_000.0 * (1 + 2.0**-22)))),
    ("q and k norm", fault("epsilon off by a thousandth", ("q_norm",), spec=normed(eps=1.001e-6))),
    (
        "softcap 50",
        fault("softcap off by 2^-20", SCORES, spec=changed(softcap=50.0 * (1 + 2.0**-20))),
    ),
]
"""The layer, with "padding", "fixed" or "no cache" where the artifact takes a mask, a fixed cache
or none, and what is planted in its file."""

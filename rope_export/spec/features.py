"""What a layer does, feature by feature, with the names that the proofs and verdicts use."""

from collections.abc import Collection, Iterator
from dataclasses import Field, dataclass, fields
from typing import TYPE_CHECKING, Any

from rope_export.rope.base import RopeSpec

if TYPE_CHECKING:
    from rope_export.spec.attention import AttentionSpec

BEGINNING = 1
"""A length within every trained context."""

END = 2**40
"""A length beyond every trained context."""


@dataclass(frozen=True, kw_only=True)
class Feature:
    """One thing that a layer does.

    kind: what lowerings list that can express it, and what makes its counterfactuals. name: in
    words. value: its parameter, where it has one. part: which of several it is, such as the "q" of
    a bias. plain: every layer of its sort has it.
    """

    kind: str
    name: str
    value: Any = None
    part: str = ""
    plain: bool = False

    def __str__(self) -> str:
        if self.value is None:
            return self.name
        return f"{self.name} {self.value if isinstance(self.value, int) else f'{self.value:g}'}"


SIZES = ("hidden_size", "heads", "kv_heads", "head_dim", "value_dim", "dtype")
"""Fields that are shapes or types of tensors: compared before any number is."""

NAMED = {
    *SIZES,
    *("rope", "latent", "q_bias", "k_bias", "v_bias", "o_bias", "scale", "softcap", "sinks"),
    *("position_scale", "causal", "window", "window_after", "chunk", "q_norm", "k_norm", "v_norm"),
    *("o_norm", "norm_after_rope", "clip", "value_scale", "gate", "gate_kind", "gate_bias"),
}
"""Fields of a spec that `features_of` names; any other is a feature of its own name."""

NAMED_OF_ROPE = {"rotary_dim", "theta", "layout", "pair_axes", "clockwise"}
"""Fields of every `RopeSpec` that `features_of` names; what a variant adds is its own."""


def features_of(spec: "AttentionSpec") -> Iterator[Feature]:
    """Everything that `spec` asks for, rotation first.

    A field that has no lines here yet is a feature too, where it is not at its default: nothing
    that is added to a spec can be missing from this.
    """
    yield from _rotation(spec)
    yield from _latent(spec)
    yield Feature(
        kind="causal" if spec.causal else "bidirectional",
        name="causal" if spec.causal else "bidirectional",
        plain=spec.causal,
    )
    if spec.heads > 1:
        yield Feature(kind="heads", name="order of the heads", plain=True)
    if spec.heads > spec.kv_heads:
        yield Feature(kind="group", name=f"{spec.heads // spec.kv_heads} heads a group")
    yield from _projections(spec)
    if spec.norm_after_rope:
        yield Feature(kind="norm order", name="norm after rope")
    for name in ("window", "window_after", "chunk", "softcap", "clip"):
        if getattr(spec, name) is not None:
            yield Feature(kind=name, name=name.replace("_", " "), value=getattr(spec, name))
    default = spec.scale is None
    yield Feature(kind="scale", name="scale", value=spec.softmax_scale, plain=default)
    if spec.sinks:
        yield Feature(kind="sinks", name="sinks")
    if spec.gate:
        yield Feature(kind="gate", name=f"{spec.gate_kind} gate a {spec.gate}")
    if spec.position_scale:
        yield Feature(kind="position scale", name="position scale")
    if spec.value_scale != 1.0:
        yield Feature(kind="value scale", name="value scale", value=spec.value_scale)
    if spec.value_head_dim != spec.head_dim and not spec.latent:
        yield Feature(kind="value width", name="value width")
    yield from _unnamed(spec, fields(spec), NAMED)


def beyond(spec: "AttentionSpec", kinds: Collection[str]) -> tuple[Feature, ...]:
    """The features of `spec` that are of none of these kinds; "layout interleaved" is one feature
    of the kind "layout"."""
    return tuple(
        feature
        for feature in features_of(spec)
        if feature.kind not in kinds and f"{feature.kind} {feature.name}" not in kinds
    )


def _unnamed(
    part: Any, all_fields: tuple[Field[Any], ...], named: Collection[str]
) -> Iterator[Feature]:
    """Features of the fields that are not named, where they are not at their defaults."""
    for field in all_fields:
        value = getattr(part, field.name)
        if field.name not in named and value != field.default:
            number = isinstance(value, int | float) and not isinstance(value, bool)
            name = field.name.replace("_", " ")
            yield Feature(kind=field.name, name=name, value=value if number else None)


def _rotation(spec: "AttentionSpec") -> Iterator[Feature]:
    rope = spec.rope
    if rope is None:
        yield Feature(kind="no rotation", name="NoPE")
        return
    yield Feature(kind="variant", name=rope.rope_type)
    yield Feature(kind="layout", name=rope.layout)
    width = spec.head_dim if spec.latent is None else spec.latent.rope_dim
    if rope.rotary_dim < width:
        yield Feature(kind="partial", name="partial")
    if rope.axes > 1:
        yield Feature(kind="axes", name=f"{rope.axes} axes")
    if rope.clockwise:
        yield Feature(kind="clockwise", name="clockwise")
    yield Feature(kind="theta", name="theta", value=rope.theta, plain=True)
    yield Feature(kind="positions", name="positions", plain=True)
    if rope.attention_factor != 1.0:
        yield Feature(
            kind="attention factor",
            name="attention factor",
            value=rope.attention_factor,
            plain=True,
        )
    if changes_with_length(rope):
        yield Feature(kind="length", name="frequencies by length", plain=True)
    yield from _unnamed(rope, fields(RopeSpec), NAMED_OF_ROPE)


def changes_with_length(rope: RopeSpec) -> bool:
    """Whether some length of a call has other frequencies than another."""
    if not rope.depends_on_length:
        return False
    import torch

    ends = [rope.inv_freq(torch.tensor(length)) for length in (BEGINNING, END)]
    return not torch.equal(*ends)


def _latent(spec: "AttentionSpec") -> Iterator[Feature]:
    latent = spec.latent
    if latent is None:
        return
    yield Feature(kind="latent", name="latent")
    ranks = ("kv_a",) if latent.q_rank is None else ("q_a", "kv_a")
    for part in ranks:
        yield Feature(kind="latent norm", name=f"{part} norm", part=part, plain=True)
        if latent.a_bias:
            yield Feature(kind="bias", name=f"{part} bias", part=part, plain=True)
    for part in ("q", "kv"):
        factor = getattr(latent, f"{part}_factor")
        if factor != 1.0 and not (part == "q" and latent.q_rank is None):
            yield Feature(
                kind="latent factor", name=f"{part} factor", value=factor, part=part, plain=True
            )


def _projections(spec: "AttentionSpec") -> Iterator[Feature]:
    for part in ("q", "k", "v", "o"):
        if getattr(spec, f"{part}_bias"):
            yield Feature(kind="bias", name=f"{part} bias", part=part)
        norm = getattr(spec, f"{part}_norm")
        if norm is not None:
            name = f"{part} {norm.kind} norm ({norm.over})"
            yield Feature(kind="norm", name=name, part=part)
    if spec.gate and spec.gate_bias:
        yield Feature(kind="bias", name="gate bias", part="gate", plain=True)

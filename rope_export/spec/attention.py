"""One attention layer, as its weights were trained."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from rope_export.errors import SpecError
from rope_export.rope.base import RopeSpec
from rope_export.rope.variants import variant
from rope_export.spec.features import Feature, features_of
from rope_export.spec.parts import LatentSpec, NormSpec, PositionScale
from rope_export.spec.reader import config_reader
from rope_export.typed_json import brief, plain, typed

DType = Literal["float32", "float16", "bfloat16"]
Gate = Literal["head", "feature"]
GateKind = Literal["sigmoid", "softplus"]
NORMS = ("q_norm", "k_norm", "v_norm", "o_norm")


@dataclass(frozen=True, kw_only=True)
class AttentionSpec:
    """One attention layer, as its weights were trained.

    hidden_size: width of hidden_states. heads, kv_heads: query heads, and the key/value heads they
    share in groups. head_dim: width of a query and key head; value_dim: of a value head, the same
    unless given. rope: none for a layer without rotation.

    scale: factor on q·k before the softmax, head_dim ** -0.5 unless given. softcap: scores become
    softcap * tanh(score / softcap). sinks: each head has one more score, a weight, that takes part
    in the softmax and has no value. position_scale: factor on the rotated queries.

    causal: a token sees no slot after its own. window: slots it sees up to and with its own;
    window_after: slots it sees after its own, where not causal; chunk: it sees only slots of its
    own block of so many.

    q_norm, k_norm, v_norm: normalisation of the projections, before the rotation unless
    norm_after_rope; o_norm: of the heads before the output projection. clip: projections are
    clamped to ±clip. value_scale: factor on the values. gate: heads are multiplied by the sigmoid,
    or another gate_kind, of a projection of hidden_states, of one number a "head" or "feature".

    latent: multi-head latent attention (MLA), whose keys and values are made of one narrow vector
    per token; see `LatentSpec`.
    dtype: of weights and activations as deployed; angles, norms and softmax are float32.
    """

    hidden_size: int
    heads: int
    kv_heads: int
    head_dim: int
    rope: RopeSpec | None
    value_dim: int | None = None
    q_bias: bool = False
    k_bias: bool = False
    v_bias: bool = False
    o_bias: bool = False
    scale: float | None = None
    softcap: float | None = None
    sinks: bool = False
    position_scale: PositionScale | None = None
    causal: bool = True
    window: int | None = None
    window_after: int | None = None
    chunk: int | None = None
    q_norm: NormSpec | None = None
    k_norm: NormSpec | None = None
    v_norm: NormSpec | None = None
    o_norm: NormSpec | None = None
    norm_after_rope: bool = False
    clip: float | None = None
    value_scale: float = 1.0
    gate: Gate | None = None
    gate_kind: GateKind = "sigmoid"
    gate_bias: bool = False
    latent: LatentSpec | None = None
    dtype: DType = "float32"

    def __post_init__(self) -> None:
        for name in ("hidden_size", "heads", "kv_heads", "head_dim"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise SpecError(f"{name}={value!r}: it must be a positive whole number.")
        if self.heads % self.kv_heads:
            raise SpecError(
                f"heads={self.heads}, kv_heads={self.kv_heads}: each key/value head serves a group "
                f"of equal size, so heads must be a multiple of kv_heads."
            )
        if self.dtype not in get_args(DType):
            raise SpecError(f"dtype={self.dtype!r}: use one of {', '.join(get_args(DType))}.")
        self._check_rotation()
        self._check_numbers()
        self._check_visibility()

    def _check_rotation(self) -> None:
        rotary_width = self.head_dim if self.latent is None else self.latent.rope_dim
        if self.rope is not None and self.rope.rotary_dim > rotary_width:
            raise SpecError(
                f"rotary_dim={self.rope.rotary_dim}, head_dim={rotary_width}: a head cannot "
                f"rotate more features than it has."
            )
        if self.position_scale is not None and self.rope is not None and self.rope.axes > 1:
            raise SpecError(
                f"position_scale with positions of {self.rope.axes} axes: queries grow with one "
                f"number, so the rotation must have one axis."
            )
        if self.latent is None:
            return
        if self.head_dim != self.latent.nope_dim + self.latent.rope_dim:
            raise SpecError(
                f"head_dim={self.head_dim}: latent attention has nope_dim + rope_dim = "
                f"{self.latent.nope_dim + self.latent.rope_dim} features a head."
            )
        if self.kv_heads != self.heads or any((self.q_norm, self.k_norm, self.v_norm, self.clip)):
            raise SpecError("latent attention has as many key heads as heads, no norms, no clip.")

    def _check_numbers(self) -> None:
        if self.gate_kind not in get_args(GateKind):
            raise SpecError(
                f"gate_kind={self.gate_kind!r}: use one of {', '.join(get_args(GateKind))}."
            )
        for name in ("scale", "softcap", "clip", "value_scale"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise SpecError(f"{name}={value}: it must be finite and positive.")
        for name in ("value_dim", "window", "chunk"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SpecError(f"{name}={value}: it must be positive.")

    def _check_visibility(self) -> None:
        if self.window is not None and self.chunk is not None:
            raise SpecError(
                f"window={self.window}, chunk={self.chunk}: a layer has one or the other."
            )
        if self.causal and self.window_after is not None:
            raise SpecError(
                f"window_after={self.window_after}: a causal layer sees nothing after a token."
            )

    @property
    def softmax_scale(self) -> float:
        """Factor on q·k before the softmax."""
        return self.head_dim**-0.5 if self.scale is None else self.scale

    @property
    def value_head_dim(self) -> int:
        """Width of a value head."""
        return self.head_dim if self.value_dim is None else self.value_dim

    @property
    def uses_positions(self) -> bool:
        """Whether the output depends on position_ids at all."""
        return self.rope is not None or self.position_scale is not None

    @property
    def first_position(self) -> int | None:
        """The lowest position at which the layer is defined, or none where all are: queries grow
        with the logarithm or a power of what would be negative before it."""
        return None if self.position_scale is None else -self.position_scale.offset

    def features(self) -> tuple[Feature, ...]:
        """Everything that the layer does, in order; `verify` has a case that shows each."""
        return tuple(features_of(self))

    @property
    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor of the layer, as torch's Linear stores it: (out, in) or (out,)."""
        width = self.heads * self.value_head_dim
        shapes = self._projection_shapes() if self.latent is None else self._latent_shapes()
        if self.gate:
            gates = width if self.gate == "feature" else self.heads
            shapes["gate_proj.weight"] = (gates, self.hidden_size)
            if self.gate_bias:
                shapes["gate_proj.bias"] = (gates,)
        for name, (heads, features) in self.norm_sizes.items():
            norm: NormSpec = getattr(self, name)
            shape = norm.shape(heads, features)
            shapes |= {
                f"{name}.{part}": shape for part in ("weight", "bias") if getattr(norm, part)
            }
        if self.sinks:
            shapes["sinks"] = (self.heads,)
        shapes["o_proj.weight"] = (self.hidden_size, width)
        if self.o_bias:
            shapes["o_proj.bias"] = (self.hidden_size,)
        return shapes

    @property
    def norm_sizes(self) -> dict[str, tuple[int, int]]:
        """Heads and features of each norm that the layer has."""
        sizes = {
            "q_norm": (self.heads, self.head_dim),
            "k_norm": (self.kv_heads, self.head_dim),
            "v_norm": (self.kv_heads, self.value_head_dim),
            "o_norm": (self.heads, self.value_head_dim),
        }
        return {name: size for name, size in sizes.items() if getattr(self, name)}

    def _projection_shapes(self) -> dict[str, tuple[int, ...]]:
        rows = {
            "q": self.heads * self.head_dim,
            "k": self.kv_heads * self.head_dim,
            "v": self.kv_heads * self.value_head_dim,
        }
        shapes: dict[str, tuple[int, ...]] = {}
        for name, size in rows.items():
            shapes[f"{name}_proj.weight"] = (size, self.hidden_size)
            if getattr(self, f"{name}_bias"):
                shapes[f"{name}_proj.bias"] = (size,)
        return shapes

    def _latent_shapes(self) -> dict[str, tuple[int, ...]]:
        latent = self.latent
        assert latent is not None
        q = self.heads * self.head_dim
        kv = self.heads * (latent.nope_dim + self.value_head_dim)
        shapes: dict[str, tuple[int, ...]] = {}
        if latent.q_rank is None:
            shapes["q_proj.weight"] = (q, self.hidden_size)
        else:
            shapes["q_a_proj.weight"] = (latent.q_rank, self.hidden_size)
            shapes["q_a_norm.weight"] = (latent.q_rank,)
            shapes["q_b_proj.weight"] = (q, latent.q_rank)
        shapes["kv_a_proj.weight"] = (latent.kv_rank + latent.rope_dim, self.hidden_size)
        shapes["kv_a_norm.weight"] = (latent.kv_rank,)
        shapes["kv_b_proj.weight"] = (kv, latent.kv_rank)
        if latent.a_bias:
            for name in ("q_a_proj", "kv_a_proj"):
                if f"{name}.weight" in shapes:
                    shapes[f"{name}.bias"] = shapes[f"{name}.weight"][:1]
        return shapes

    @classmethod
    def from_hf(cls, config: Any, *, layer: int = 0, part: str | None = None) -> "AttentionSpec":
        """The facts of one layer, from a Hugging Face config.

        config: a path to config.json or its folder, its contents as a dict, or a transformers
            config object. layer: index of the layer, from 0. part: of a model of several towers,
            the key of the inner config, such as "vision_config"; the text decoder unless given.
        Raises: SpecError naming the key for every feature that is not implemented;
            UnavailableError without the `export` extra.
        """
        return config_reader()(config, layer=layer, part=part)

    def to_json(self) -> dict[str, Any]:
        """The spec as plain values, for a manifest."""
        facts: dict[str, Any] = plain(self)
        if self.rope is not None:
            facts["rope"] = {"rope_type": self.rope.rope_type, **plain(self.rope)}
        return facts

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> "AttentionSpec":
        """The spec that `to_json` wrote.

        Raises: SpecError for values of another type, and keys or variants that there are not.
        """
        where, rope = "the manifest's spec", facts.get("rope")
        spec = typed({**facts, "rope": None}, cls, where, SpecError)
        if rope is None:
            return replace(spec)  # which sets what was left at its default too
        if not isinstance(rope, dict) or not isinstance(rope.get("rope_type"), str):
            raise SpecError(f"{where}: rope={brief(rope)}: it needs a rope_type, or is null.")
        parameters = {name: value for name, value in rope.items() if name != "rope_type"}
        kind = variant(rope["rope_type"])
        return replace(spec, rope=typed(parameters, kind, f"{where}: rope", SpecError))

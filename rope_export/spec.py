"""Frozen facts about one attention layer and how its heads turn with position."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from rope_export.errors import SpecError

if TYPE_CHECKING:
    from torch import Tensor

Layout = Literal["half_split", "interleaved"]
DType = Literal["float32", "float16", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class RopeSpec(ABC):
    """How a head turns with position: one subclass, in one file of `rope/`, for each variant.

    rotary_dim: leading features of a head that turn; even, in pairs.
    theta: base of the geometric series of frequencies, radians per position.
    layout: which features pair up: (i, i + rotary_dim / 2) in "half_split", the NeoX way, or
        (2i, 2i + 1) in "interleaved", the GPT-J way.
    Source: RoFormer, arXiv:2104.09864, section 3.2.2.
    """

    rope_type: ClassVar[str]
    hf_keys: ClassVar[dict[str, str]] = {}
    """Names of the variant's own parameters in a Hugging Face config, to fields here."""

    rotary_dim: int
    theta: float = 10_000.0
    layout: Layout = "half_split"

    def __post_init__(self) -> None:
        if self.rotary_dim < 2 or self.rotary_dim % 2:
            raise SpecError(
                f"rotary_dim={self.rotary_dim}: features turn in pairs, so it must be even "
                f"and positive. Use {max(2, self.rotary_dim // 2 * 2)}."
            )
        if not 1.0 < self.theta < float("inf"):
            raise SpecError(
                f"rope theta={self.theta}: frequencies fall from 1 as theta ** -x, so theta must "
                f"be finite and above 1. Published models use 10000 and more."
            )
        if self.layout not in get_args(Layout):
            raise SpecError(
                f"layout={self.layout!r}: pairs are one of {', '.join(get_args(Layout))}."
            )

    @abstractmethod
    def inv_freq(self) -> "Tensor":
        """Angle per position of each pair.

        Returns: float32[rotary_dim / 2], radians per position, bit for bit what transformers has.
        """

    @property
    def attention_factor(self) -> float:
        """What cos and sin are multiplied by; 1 unless the variant says otherwise."""
        return 1.0


@dataclass(frozen=True, kw_only=True)
class AttentionSpec:
    """One rotary attention layer, as its weights were trained.

    hidden_size: width of hidden_states. heads, kv_heads: query heads, and the key/value heads they
    share in groups. head_dim: width of one head. scale: factor on q·k before the softmax, head_dim
    ** -0.5 unless given. dtype: of weights and activations as deployed; angles are always float32.
    """

    hidden_size: int
    heads: int
    kv_heads: int
    head_dim: int
    rope: RopeSpec
    q_bias: bool = False
    k_bias: bool = False
    v_bias: bool = False
    o_bias: bool = False
    scale: float | None = None
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
        if self.rope.rotary_dim > self.head_dim:
            raise SpecError(
                f"rotary_dim={self.rope.rotary_dim}, head_dim={self.head_dim}: a head cannot turn "
                f"more features than it has."
            )
        if self.dtype not in get_args(DType):
            raise SpecError(f"dtype={self.dtype!r}: use one of {', '.join(get_args(DType))}.")
        if self.scale is not None and not 0 < self.scale < float("inf"):
            raise SpecError(f"scale={self.scale}: it must be finite and positive.")

    @property
    def softmax_scale(self) -> float:
        """Factor on q·k before the softmax."""
        return self.head_dim**-0.5 if self.scale is None else self.scale

    @property
    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor of the layer, as torch's Linear stores it: (out, in) or (out,)."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        shapes: dict[str, tuple[int, ...]] = {
            "q_proj.weight": (q, self.hidden_size),
            "k_proj.weight": (kv, self.hidden_size),
            "v_proj.weight": (kv, self.hidden_size),
            "o_proj.weight": (self.hidden_size, q),
        }
        for name, there in zip("qkvo", self._biases, strict=True):
            if there:
                shapes[f"{name}_proj.bias"] = shapes[f"{name}_proj.weight"][:1]
        return shapes

    @property
    def _biases(self) -> tuple[bool, bool, bool, bool]:
        return self.q_bias, self.k_bias, self.v_bias, self.o_bias

    @classmethod
    def from_hf(cls, config: Any, *, layer: int = 0) -> "AttentionSpec":
        """The facts of one layer, from a Hugging Face config.

        config: a path to config.json or its folder, its contents as a dict, or a transformers
            config object. layer: index of the layer, from 0.
        Raises: SpecError naming the key for every feature that is not implemented.
        """
        from rope_export.checkpoints.config import read_spec

        return read_spec(config, layer=layer)

    def to_json(self) -> dict[str, Any]:
        """The spec as plain values, for a manifest."""
        facts = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        rope = {f.name: getattr(self.rope, f.name) for f in dataclasses.fields(self.rope)}
        return {**facts, "rope": {"rope_type": self.rope.rope_type, **rope}}

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> "AttentionSpec":
        """The spec that `to_json` wrote.

        Raises: SpecError for keys or variants this version does not know.
        """
        from rope_export.rope import variant

        rope = dict(facts["rope"])
        try:
            turning = variant(rope.pop("rope_type"))(**rope)
            return cls(**{**facts, "rope": turning})
        except TypeError as error:
            raise SpecError(
                f"the manifest's spec does not fit this version of rope_export ({error}). "
                f"Export the artifact again."
            ) from error

"""How a head rotates with position: what every variant has in common."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from rope_export.errors import SpecError
from rope_export.rope.parameters import number, whole

if TYPE_CHECKING:
    from torch import Tensor

Layout = Literal["half_split", "interleaved", "permuted"]


@dataclass(frozen=True, kw_only=True)
class RopeSpec(ABC):
    """How a head rotates with position: one subclass, in one file of `rope/`, for each variant.

    rotary_dim: leading features of a head that rotate; even, in pairs.
    theta: base of the geometric series of frequencies, radians per position.
    layout: which features pair up: (i, i + rotary_dim / 2) in "half_split", the NeoX way, or
        (2i, 2i + 1) in "interleaved", the GPT-J way; "permuted" takes the pairs (2i, 2i + 1) and
        leaves them at (i, i + rotary_dim / 2), as DeepSeek's latent attention does.
    pair_axes: for positions of several axes (time, height, width), the axis that each pair rotates
        with; empty for plain positions.
    clockwise: pairs rotate by minus the angle.
    Source: RoFormer, arXiv:2104.09864, section 3.2.2.
    """

    rope_type: ClassVar[str]
    hf_keys: ClassVar[dict[str, str]] = {}
    """Names of the variant's own parameters in a Hugging Face config, to fields here."""
    published: ClassVar[bool] = True
    """Whether a config may name it; the others are what some families' code does."""
    reads_partial_factor: ClassVar[bool] = False
    """Whether a partial_rotary_factor is the variant's own parameter, whatever the family."""
    depends_on_length: ClassVar[bool] = False
    """Whether inv_freq changes with the largest position of a call."""

    rotary_dim: int
    theta: float = 10_000.0
    layout: Layout = "half_split"
    pair_axes: tuple[int, ...] = ()
    clockwise: bool = False

    def __post_init__(self) -> None:
        if self.rotary_dim < 2 or self.rotary_dim % 2:
            raise SpecError(
                f"rotary_dim={self.rotary_dim}: features rotate in pairs, so it must be even "
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
        object.__setattr__(self, "pair_axes", tuple(self.pair_axes))
        if self.pair_axes and len(self.pair_axes) != self.rotary_dim // 2:
            raise SpecError(
                f"pair_axes names {len(self.pair_axes)} pairs; rotary_dim={self.rotary_dim} has "
                f"{self.rotary_dim // 2}: the sections of a multi-axis rope must add up to that."
            )

    @classmethod
    def read(
        cls, parameters: dict[str, Any], config: Any, *, head_dim: int, **common: Any
    ) -> "RopeSpec":
        """The variant from a config's rope parameters: each key of `hf_keys` as a required number,
        which is whole where the field is an int.

        parameters: the rope parameters. config, head_dim: for the few variants that look there.
        common: fields of every variant, already read.
        """
        integers = {field.name for field in fields(cls) if field.type in (int, "int")}
        own_fields: dict[str, Any] = {
            name: (whole if name in integers else number)(parameters, key)
            for key, name in cls.hf_keys.items()
        }
        return cls(**common, **own_fields)

    @property
    def axes(self) -> int:
        """Coordinates of a position."""
        return max(self.pair_axes, default=0) + 1

    @abstractmethod
    def inv_freq(self, length: "Tensor | None" = None) -> "Tensor":
        """Angle per position of each pair.

        length: int64[], one more than the largest position of the call; without, the frequencies
            within the trained context. Only variants that depend on it look at it.
        Returns: float32[rotary_dim / 2], radians per position, bit for bit what transformers has
            where they do not depend on the length.
        """

    def table(self) -> "Tensor":
        """The constant of a module and of an exported graph: inv_freq itself, or what `chosen`
        makes it of. A graph must not compute powers in float32: every runtime has others.
        """
        return self.inv_freq()

    def chosen(self, table: "Tensor", length: "Tensor") -> "Tensor":
        """inv_freq of a call of this length, from `table` on the same device."""
        return table

    def coordinates(self, position_ids: "Tensor") -> "Tensor":
        """Factors on the frequencies: the positions, in float32, of the same shape."""
        return position_ids.float()

    @property
    def attention_factor(self) -> float:
        """Factor on cos and sin; 1 unless the variant has another."""
        return 1.0

"""Facts about the parts that some attention layers have beside projections and rotation."""

from dataclasses import dataclass
from typing import Literal, get_args

from rope_export.errors import SpecError

NormKind = Literal["rms", "layer"]
ScaleForm = Literal["log", "power"]
Over = Literal["head", "heads", "all"]


@dataclass(frozen=True, kw_only=True)
class NormSpec:
    """A normalisation of queries, keys, values or heads, computed in float32 and cast last.

    kind: "rms" divides by the root mean square, "layer" takes the mean off first. eps: added to
    the mean square. over: each "head" with weights that all heads share, each head with weights of
    its own ("heads"), or "all" heads as one vector. weight: it has weights; what is multiplied is
    offset + weight. bias: it has a bias.
    Source: RMSNorm, arXiv:1910.07467; Layer Normalization, arXiv:1607.06450.
    """

    kind: NormKind = "rms"
    eps: float = 1e-6
    over: Over = "head"
    weight: bool = True
    bias: bool = False
    offset: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(NormKind) or self.over not in get_args(Over):
            raise SpecError(
                f"norm kind={self.kind!r} over={self.over!r}: use one of "
                f"{', '.join(get_args(NormKind))} over {', '.join(get_args(Over))}."
            )
        if not 0 <= self.eps < 1:
            raise SpecError(f"norm eps={self.eps}: it must be small and not negative.")

    def shape(self, heads: int, head_dim: int) -> tuple[int, ...]:
        """Shape of the weights."""
        return {"head": (head_dim,), "heads": (heads, head_dim), "all": (heads * head_dim,)}[
            self.over
        ]


@dataclass(frozen=True, kw_only=True)
class PositionScale:
    """Queries grow with their position p: by 1 + beta ln(1 + floor((p + offset) / length)) in the
    form "log", by (1 + (p + offset) / length) ** beta in the form "power".

    Source: Llama 4's attention temperature, Ministral 3's, and Beam's, in transformers 5.23.
    """

    beta: float
    length: float
    offset: int = 0
    form: ScaleForm = "log"

    def __post_init__(self) -> None:
        if self.length <= 0 or self.form not in get_args(ScaleForm):
            raise SpecError(
                f"position scale length={self.length}, form={self.form!r}: the length must be "
                f"positive, the form one of {', '.join(get_args(ScaleForm))}."
            )


@dataclass(frozen=True, kw_only=True)
class LatentSpec:
    """Multi-head latent attention: keys and values are made of one narrow vector per token.

    q_rank: width of the queries' latent, none if they are projected directly. kv_rank: width of
    the cached latent. nope_dim, rope_dim: features of a query or key that do not and that do
    rotate, in this order; the latter of a key are shared by all heads. norm_eps: of the RMS
    norms of the latents. a_bias: the projections to the latents have a bias. q_factor, kv_factor:
    factors on the normalised latents.
    Source: DeepSeek-V2, arXiv:2405.04434, section 2.1.
    """

    q_rank: int | None
    kv_rank: int
    nope_dim: int
    rope_dim: int
    norm_eps: float = 1e-6
    a_bias: bool = False
    q_factor: float = 1.0
    kv_factor: float = 1.0

    def __post_init__(self) -> None:
        for name in ("kv_rank", "nope_dim", "rope_dim"):
            if getattr(self, name) < 1:
                raise SpecError(f"latent {name}={getattr(self, name)}: it must be positive.")
        if self.q_rank is not None and self.q_rank < 1:
            raise SpecError(f"latent q_rank={self.q_rank}: it must be positive, or none.")

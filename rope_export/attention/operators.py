"""The operators that an attention layer is computed with: their protocol, and eager PyTorch's.

Shapes as in `attention.layer`.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from rope_export.attention.request import (
    AttentionRequest,
    FixedCache,
    NoCache,
    Slots,
    Visibility,
    visibility_facts,
)
from rope_export.spec import AttentionSpec, RopeSpec

BY_HEAD = "batch head sequence channel"
BY_TOKEN = "batch sequence head channel"
BY_FEATURE = "batch sequence channel"
BY_SLOT = "batch head sequence slot"
"""Axes of tensors that can be looked at; see `Operators.tap`."""

Tap = Callable[[str, Tensor, str], Tensor]


def untapped(name: str, x: Tensor, axes: str) -> Tensor:
    """As `Operators.tap` where nobody looks."""
    return x


class Operators(Protocol):
    """The protocol of rotation, cache and attention, which `EagerOperators` and every lowering
    implement.

    heads_axis: where the heads of q, k and v are: 1 in (B, heads, S, D), 2 in (B, S, heads, D).
    """

    heads_axis: ClassVar[int]

    @abstractmethod
    def split(self, x: Tensor, width: int) -> Tensor:
        """x (B, S, heads * width) as (B, S, heads, width)."""

    @abstractmethod
    def join(self, x: Tensor) -> Tensor:
        """x (B, S, heads, width) as (B, S, heads * width)."""

    @abstractmethod
    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor, rope: RopeSpec) -> Tensor:
        """x rotated by the angles whose cos and sin are (B, S, R / 2)."""

    @abstractmethod
    def keep(self, past: Tensor | None, new: Tensor, lengths: Tensor | None) -> Tensor:
        """The cache after this call, from (..., P, D) and (..., S, D).

        lengths: int64 (B,), filled slots of a fixed cache, after which the new entries are written;
            none for a growing one.
        """

    @abstractmethod
    def visibility(self, slots: Slots, spec: AttentionSpec) -> Visibility:
        """Which slots each new token sees, in the form that `attend` takes."""

    def tap(self, name: str, x: Tensor, axes: str) -> Tensor:
        """x itself: a tensor on the way that can be looked at, where somebody does.

        name: as the layer calls it. axes: names of x's axes, in the order in which they lie, of
        batch, head, sequence, slot and channel; several of x's may be one of them, or one several.
        """
        return x

    @property
    def by_head(self) -> str:
        """The axes of q, k, v and heads."""
        return BY_HEAD if self.heads_axis == 1 else BY_TOKEN

    @abstractmethod
    def attend(self, request: AttentionRequest) -> tuple[Tensor, Tensor, Tensor]:
        """Heads (B, H, S, V), and the keys and values after the call (B, G, T, D or V)."""

    def extended(self, request: AttentionRequest) -> tuple[Tensor, Tensor]:
        """Keys and values after the call, by `keep`."""
        k, v, cache = request.k, request.v, request.cache
        if isinstance(cache, NoCache):
            return k, v
        lengths = cache.lengths if isinstance(cache, FixedCache) else None
        return self.keep(cache.key, k, lengths), self.keep(cache.value, v, lengths)


class EagerOperators(Operators):
    """Plain torch, as transformers' eager attention computes it."""

    heads_axis: ClassVar[int] = 1

    def split(self, x: Tensor, width: int) -> Tensor:
        return x.unflatten(-1, (-1, width))

    def join(self, x: Tensor) -> Tensor:
        return x.flatten(2)

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor, rope: RopeSpec) -> Tensor:
        return rotate(x, cos, sin, rope)

    def keep(self, past: Tensor | None, new: Tensor, lengths: Tensor | None) -> Tensor:
        return append(past, new) if past is None or lengths is None else write(past, new, lengths)

    def visibility(self, slots: Slots, spec: AttentionSpec) -> Visibility:
        return Visibility(facts=visibility_facts(spec), allowed=allowed_in(slots, spec))

    def attend(self, request: AttentionRequest) -> tuple[Tensor, Tensor, Tensor]:
        k, v = self.extended(request)
        allowed = request.visibility.allowed
        assert allowed is not None
        heads = attend(request.q, k, v, allowed, request.spec, request.sinks, self.tap)
        return heads, k, v


def allowed_in(slots: Slots, spec: AttentionSpec) -> Tensor:
    """The slots that each new token of a call may see; see `allowed_slots`."""
    return allowed_slots(
        slots.sequence, slots.total, slots.attention_mask, spec, slots.device, slots.lengths
    )


def rotate(x: Tensor, cos: Tensor, sin: Tensor, rope: RopeSpec) -> Tensor:
    """The first rotary_dim features of every head rotated, pair by pair; the rest stay.

    x: (B, heads, S, D). cos, sin: (B, S, R / 2); the head axis is added here, so that B = heads
    cannot broadcast wrongly. Each pair becomes (x1 cos - x2 sin, x2 cos + x1 sin).
    Source: RoFormer, arXiv:2104.09864, equation 34; both layouts as in ONNX RotaryEmbedding-23.
    """
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    rotating, still = x[..., : rope.rotary_dim], x[..., rope.rotary_dim :]
    if rope.layout == "half_split":
        x1, x2 = rotating.chunk(2, dim=-1)
    else:
        x1, x2 = rotating[..., 0::2], rotating[..., 1::2]
    y1, y2 = x1 * cos - x2 * sin, x2 * cos + x1 * sin
    if rope.layout == "interleaved":
        rotated = torch.stack((y1, y2), dim=-1).flatten(-2)
    else:
        rotated = torch.cat((y1, y2), dim=-1)
    # jit.trace cannot compare sizes; adding nothing is the same.
    if not torch.jit.is_tracing() and rope.rotary_dim == x.shape[-1]:
        return rotated
    return torch.cat((rotated, still), dim=-1)


def append(past: Tensor | None, new: Tensor) -> Tensor:
    """The cache after this call: (B, G, P, D) and (B, G, S, D) give (B, G, T, D)."""
    return new if past is None else torch.cat((past, new), dim=-2)


def write(cache: Tensor, new: Tensor, lengths: Tensor) -> Tensor:
    """A copy of the cache with the new entries after the filled slots, row by row.

    cache: (B, ..., T, D). new: (B, ..., S, D). lengths: int64 (B,).
    """
    at = lengths[:, None] + torch.arange(new.shape[-2], device=new.device)
    index = at.view(at.shape[0], *[1] * (new.dim() - 3), at.shape[1], 1).expand(new.shape)
    return cache.scatter(-2, index, new)


def allowed_slots(
    sequence: int,
    total: int,
    attention_mask: Tensor | None,
    spec: AttentionSpec,
    device: torch.device,
    lengths: Tensor | None = None,
) -> Tensor:
    """Which cache slots each new token may see, whose own slot is past + i. Chunks are counted from
    the first slot that is not padding, row by row, as the model was trained.

    attention_mask: int64 (B, T) or none. lengths: int64 (B,), filled slots of a fixed cache of T
    slots; without, T is past + S.
    Returns: bool (1, 1, S, T), or (B, 1, S, T) with a mask or lengths.
    """
    slots = torch.arange(total, device=device)
    new = torch.arange(sequence, device=device)[None]
    own = new + (total - sequence) if lengths is None else new + lengths[:, None]
    at = own[..., None]
    allowed = slots <= at if spec.causal else slots == slots
    if spec.window is not None:
        allowed = allowed & (slots > at - spec.window)
    if spec.window_after is not None:
        allowed = allowed & (slots <= at + spec.window_after)
    allowed = allowed.expand(own.shape[0], sequence, total)[:, None]
    if spec.chunk is not None:
        first = torch.zeros((1, 1), dtype=torch.int64, device=device)
        if attention_mask is not None:
            first = (attention_mask != 0).long().argmax(dim=1, keepdim=True)
        block, own_block = (slots - first) // spec.chunk, (own - first) // spec.chunk
        allowed = allowed & (block[:, None, None, :] == own_block[:, None, :, None])
    if attention_mask is None:
        return allowed
    if not torch.jit.is_tracing():
        torch._check(
            attention_mask.shape[1] == total,
            lambda: "attention_mask must cover past + sequence slots",
        )
    return allowed & (attention_mask != 0)[:, None, None, :]


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    allowed: Tensor,
    spec: AttentionSpec,
    sinks: Tensor | None,
    tap: Tap = untapped,
) -> Tensor:
    """Softmax attention over the allowed slots, heads in groups; zero where none is allowed.

    q: (B, H, S, D). k: (B, G, T, D). v: (B, G, T, V). allowed: bool, broadcast to (B, H, S, T).
    sinks: (H,), a score that takes part in the softmax and has no value. The softmax is in float32
    at every dtype, float64 included, as in transformers' eager attention. tap: see `Operators.tap`.
    Returns: (B, H, S, V).
    """
    group = q.shape[1] // k.shape[1]
    if torch.jit.is_tracing() or group > 1:
        k, v = (x.unsqueeze(2).expand(-1, -1, group, -1, -1).flatten(1, 2) for x in (k, v))
    scores = tap("products", torch.matmul(q, k.transpose(2, 3)) * spec.softmax_scale, BY_SLOT)
    if spec.softcap is not None:
        scores = torch.tanh(scores / spec.softcap) * spec.softcap
    scores = tap("scores", scores, BY_SLOT)
    scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
    if sinks is not None:
        sink = sinks[None, :, None, None].expand(scores.shape[0], -1, scores.shape[2], 1)
        scores = torch.cat((scores, sink), dim=-1)
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
    if sinks is not None:
        weights = weights[..., :-1]
    weights = tap("probabilities", weights, BY_SLOT)
    # Changes nothing but the rows that may see nothing at all, which softmax made uniform.
    return torch.matmul(weights.masked_fill(~allowed, 0), v)

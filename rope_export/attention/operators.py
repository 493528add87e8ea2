"""How the layer's rotation, cache and attention are said, and eager's way: what transformers'
eager attention computes, in plain torch.

Shapes as in `attention`.
"""

from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from rope_export.spec import AttentionSpec, RopeSpec


class Expression(Protocol):
    """How rotation, cache and attention are said; eager's way is `Eager`, a lowering is another.

    heads_axis: where the heads of q, k and v are: 1 in (B, heads, S, D), 2 in (B, S, heads, D).
    """

    heads_axis: ClassVar[int]

    def split(self, x: Tensor, width: int) -> Tensor:
        """x (B, S, heads * width) as (B, S, heads, width)."""

    def join(self, x: Tensor) -> Tensor:
        """x (B, S, heads, width) as (B, S, heads * width)."""

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor, rope: RopeSpec) -> Tensor:
        """x turned by cos and sin (B, S, R / 2)."""

    def keep(self, past: Tensor | None, new: Tensor, lengths: Tensor | None) -> Tensor:
        """The cache after this call, from (..., P, D) and (..., S, D).

        lengths: int64 (B,), entries in use of a fixed cache, after which the new ones are written;
            none for a growing one.
        """

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        past_key: Tensor | None,
        past_value: Tensor | None,
        lengths: Tensor | None,
        attention_mask: Tensor | None,
        spec: AttentionSpec,
        sinks: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Heads, and present_key and present_value (B, G, T, D or V).

        past_key, past_value, lengths: as for `keep`. k and v may be longer than q: they then hold
        the past already.
        """


class Eager:
    """In plain torch, as transformers' eager attention computes it."""

    heads_axis: ClassVar[int] = 1

    def split(self, x: Tensor, width: int) -> Tensor:
        return x.unflatten(-1, (-1, width))

    def join(self, x: Tensor) -> Tensor:
        return x.flatten(2)

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor, rope: RopeSpec) -> Tensor:
        return rotate(x, cos, sin, rope)

    def keep(self, past: Tensor | None, new: Tensor, lengths: Tensor | None) -> Tensor:
        return append(past, new) if past is None or lengths is None else write(past, new, lengths)

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        past_key: Tensor | None,
        past_value: Tensor | None,
        lengths: Tensor | None,
        attention_mask: Tensor | None,
        spec: AttentionSpec,
        sinks: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        if past_key is not None:
            k, v = self.keep(past_key, k, lengths), self.keep(past_value, v, lengths)
        allowed = allowed_slots(q.shape[2], k.shape[2], attention_mask, spec, q.device, lengths)
        return attend(q, k, v, allowed, spec, sinks), k, v


def rotate(x: Tensor, cos: Tensor, sin: Tensor, rope: RopeSpec) -> Tensor:
    """Turn the first rotary_dim features of every head, pair by pair; the rest stay.

    x: (B, heads, S, D). cos, sin: (B, S, R / 2); the head axis is added here, so that B = heads
    cannot broadcast wrongly. Each pair becomes (x1 cos - x2 sin, x2 cos + x1 sin).
    Source: RoFormer, arXiv:2104.09864, equation 34; both layouts as in ONNX RotaryEmbedding-23.
    """
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    turning, still = x[..., : rope.rotary_dim], x[..., rope.rotary_dim :]
    if rope.layout == "half_split":
        x1, x2 = turning.chunk(2, dim=-1)
    else:
        x1, x2 = turning[..., 0::2], turning[..., 1::2]
    y1, y2 = x1 * cos - x2 * sin, x2 * cos + x1 * sin
    if rope.layout == "interleaved":
        turned = torch.stack((y1, y2), dim=-1).flatten(-2)
    else:
        turned = torch.cat((y1, y2), dim=-1)
    # jit.trace cannot compare sizes; adding nothing is the same.
    if not torch.jit.is_tracing() and rope.rotary_dim == x.shape[-1]:
        return turned
    return torch.cat((turned, still), dim=-1)


def append(past: Tensor | None, new: Tensor) -> Tensor:
    """The cache after this call: (B, G, P, D) and (B, G, S, D) give (B, G, T, D)."""
    return new if past is None else torch.cat((past, new), dim=-2)


def write(cache: Tensor, new: Tensor, lengths: Tensor) -> Tensor:
    """A copy of the cache with the new entries after those in use, row by row.

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

    attention_mask: int64 (B, T) or none. lengths: int64 (B,), entries in use of a fixed cache,
    whose slots are T; without, T is past + S.
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
    q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, spec: AttentionSpec, sinks: Tensor | None
) -> Tensor:
    """Softmax attention over the allowed slots, heads in groups; zero where none is allowed.

    q: (B, H, S, D). k: (B, G, T, D). v: (B, G, T, V). allowed: bool, broadcast to (B, H, S, T).
    sinks: (H,), a score that takes part in the softmax and has no value. The softmax is in float32
    at every dtype, float64 included, as in transformers' eager attention.
    Returns: (B, H, S, V).
    """
    group = q.shape[1] // k.shape[1]
    if torch.jit.is_tracing() or group > 1:
        k, v = (x.unsqueeze(2).expand(-1, -1, group, -1, -1).flatten(1, 2) for x in (k, v))
    scores = torch.matmul(q, k.transpose(2, 3)) * spec.softmax_scale
    if spec.softcap is not None:
        scores = torch.tanh(scores / spec.softcap) * spec.softcap
    scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
    if sinks is not None:
        sink = sinks[None, :, None, None].expand(scores.shape[0], -1, scores.shape[2], 1)
        scores = torch.cat((scores, sink), dim=-1)
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
    if sinks is not None:
        weights = weights[..., :-1]
    # Changes nothing but the rows that may see nothing at all, which softmax made uniform.
    return torch.matmul(weights.masked_fill(~allowed, 0), v)

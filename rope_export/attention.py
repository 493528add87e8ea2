"""RotaryAttention: the attention layer in plain torch, the truth that every artifact is held to.

Shapes: B batch, S new tokens, P past tokens, T = P + S, H query heads, G key/value heads,
D head_dim, R rotary_dim.
"""

from collections.abc import Callable, Mapping
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rope_export.errors import CheckpointError
from rope_export.spec import AttentionSpec, RopeSpec


class RotaryAttention(nn.Module):
    """Causal attention whose queries and keys are turned by position, as transformers computes it.

    Angles, cos, sin and the softmax are computed in float32 whatever the module's dtype is, and
    cast last: a float16 or bfloat16 angle is wrong by whole turns beyond a few thousand positions.
    Positions only rotate; causality counts cache slots.

    Works under torch.export, torch.compile(fullgraph=True) and torch.jit.trace.
    """

    inv_freq: Tensor
    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module
    o_proj: nn.Module

    def __init__(self, spec: AttentionSpec) -> None:
        super().__init__()
        self.spec = spec
        for name in "qkvo":
            out_features, in_features = spec.weight_shapes[f"{name}_proj.weight"]
            bias = f"{name}_proj.bias" in spec.weight_shapes
            dtype = getattr(torch, spec.dtype)
            self.add_module(f"{name}_proj", nn.Linear(in_features, out_features, bias, dtype=dtype))
        self.register_buffer("inv_freq", spec.rope.inv_freq(), persistent=False)

    @classmethod
    def from_weights(cls, spec: AttentionSpec, weights: Mapping[str, Tensor]) -> Self:
        """The layer with these weights, taken over without a copy and in their own dtype.

        weights: one tensor for each name of `spec.weight_shapes`, of that shape.
        Raises: CheckpointError naming the tensor that is missing, unknown or of another shape.
        """
        shapes = spec.weight_shapes
        for name in sorted(shapes.keys() | weights.keys()):
            if name not in weights or name not in shapes:
                problem = "is missing" if name in shapes else "is not part of the layer"
                raise CheckpointError(f"tensor {name!r} {problem}; the spec has {sorted(shapes)}.")
            if tuple(weights[name].shape) != shapes[name]:
                raise CheckpointError(
                    f"tensor {name!r} has shape {tuple(weights[name].shape)}, "
                    f"the spec asks for {shapes[name]}."
                )
        with torch.device("meta"):
            layer = cls(spec)
        layer.load_state_dict(dict(weights), assign=True)
        layer.inv_freq = spec.rope.inv_freq()
        return layer.eval().requires_grad_(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves with the module, but is never cast: inv_freq in float16 is off by whole turns."""
        super()._apply(fn, recurse)
        self.inv_freq = self.spec.rope.inv_freq().to(self.inv_freq.device)
        return self

    def forward(
        self,
        hidden_states: Tensor,
        position_ids: Tensor,
        past_key: Tensor | None = None,
        past_value: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """One pass over S new tokens after P cached ones.

        hidden_states: (B, S, hidden_size). position_ids: int64 (B, S), any order and values.
        past_key, past_value: (B, G, P, D), keys already turned; P may be 0; both or neither.
        attention_mask: int64 (B, T), 1 = attend, 0 = padding; none means attend to all.
        Returns: attention_output (B, S, hidden_size), zero before the output projection where a
            token may attend to nothing; present_key and present_value (B, G, T, D).
        """
        q, k, v = self.project(hidden_states)
        cos, sin = self.cos_sin(position_ids, dtype=q.dtype)
        q, k = self.rotate(q, cos, sin), self.rotate(k, cos, sin)
        heads, present_key, present_value = self.attend(
            q, k, v, past_key, past_value, attention_mask
        )
        return self.o_proj(heads.transpose(1, 2).flatten(2)), present_key, present_value

    def project(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q (B, H, S, D), k and v (B, G, S, D) of hidden_states (B, S, hidden_size)."""
        shape = (-1, self.spec.head_dim)
        q, k, v = (
            project(hidden_states).unflatten(-1, shape).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        return q, k, v

    def cos_sin(self, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin of every pair's angle at position_ids (B, S): two (B, S, R / 2) of `dtype`.

        Error: the float32 angle is off by at most |position| * 2**-24 rad, as in trained models.
        """
        angles = position_ids[..., None].float() * self.inv_freq
        cos, sin = angles.cos(), angles.sin()
        if self.spec.rope.attention_factor != 1.0:
            cos, sin = (x * self.spec.rope.attention_factor for x in (cos, sin))
        return cos.to(dtype), sin.to(dtype)

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return rotate(x, cos, sin, self.spec.rope)

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        past_key: Tensor | None,
        past_value: Tensor | None,
        attention_mask: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Heads (B, H, S, D), present_key and present_value (B, G, T, D)."""
        present_key, present_value = append(past_key, k), append(past_value, v)
        allowed = allowed_slots(q.shape[2], present_key.shape[2], attention_mask, q.device)
        heads = attend(q, present_key, present_value, allowed, self.spec.softmax_scale)
        return heads, present_key, present_value


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
    if rope.layout == "half_split":
        turned = torch.cat((y1, y2), dim=-1)
    else:
        turned = torch.stack((y1, y2), dim=-1).flatten(-2)
    # jit.trace cannot compare sizes; adding nothing is the same.
    if not torch.jit.is_tracing() and rope.rotary_dim == x.shape[-1]:
        return turned
    return torch.cat((turned, still), dim=-1)


def append(past: Tensor | None, new: Tensor) -> Tensor:
    """The cache after this call: (B, G, P, D) and (B, G, S, D) give (B, G, T, D)."""
    return new if past is None else torch.cat((past, new), dim=2)


def allowed_slots(
    sequence: int, total: int, attention_mask: Tensor | None, device: torch.device
) -> Tensor:
    """Which cache slots each new token may see: slot j for token i iff j <= past + i, and not
    masked.

    attention_mask: int64 (B, T) or none. Returns: bool (1, 1, S, T), or (B, 1, S, T) with a mask.
    """
    slots = torch.arange(total, device=device)
    own = torch.arange(sequence, device=device) + (total - sequence)
    allowed = (slots <= own[:, None])[None, None]
    if attention_mask is None:
        return allowed
    if not torch.jit.is_tracing():
        torch._check(
            attention_mask.shape[1] == total,
            lambda: "attention_mask must cover past + sequence slots",
        )
    return allowed & (attention_mask != 0)[:, None, None, :]


def attend(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, scale: float) -> Tensor:
    """Softmax attention over the allowed slots, heads in groups; zero where none is allowed.

    q: (B, H, S, D). k, v: (B, G, T, D). allowed: bool, broadcast to (B, H, S, T). The softmax is
    in float32 at every dtype, float64 included, as in transformers' eager attention.
    Returns: (B, H, S, D).
    """
    group = q.shape[1] // k.shape[1]
    if torch.jit.is_tracing() or group > 1:
        k, v = (x.unsqueeze(2).expand(-1, -1, group, -1, -1).flatten(1, 2) for x in (k, v))
    scores = torch.matmul(q, k.transpose(2, 3)) * scale
    scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
    # Changes nothing but the rows that may see nothing at all, which softmax made uniform.
    return torch.matmul(weights.masked_fill(~allowed, 0), v)

"""RotaryAttention: the attention layer in plain torch, the truth that every artifact is held to.

Shapes: B batch, S new tokens, P past tokens, T = P + S, H query heads, G key/value heads,
D head_dim, V value_dim, R rotary_dim, A axes of a position.
"""

from collections.abc import Callable, Mapping
from typing import Self

from rope_export.errors import CheckpointError, extra

with extra("export", "RotaryAttention"):
    import torch
    import torch.nn.functional as F
    from torch import Tensor, nn

from rope_export.attention.operators import Eager, Expression
from rope_export.spec import AttentionSpec, NormSpec


class Norm(nn.Module):
    """An RMS or layer normalisation over the last axis, in float32 and cast last.

    Source: RMSNorm, arXiv:1910.07467; Layer Normalization, arXiv:1607.06450.
    """

    def __init__(self, spec: NormSpec, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        super().__init__()
        self.spec = spec
        self.weight: nn.Parameter | None
        self.bias: nn.Parameter | None
        for name in ("weight", "bias"):
            values = torch.full(shape, float(name == "weight") - spec.offset, dtype=dtype)
            self.register_parameter(name, nn.Parameter(values) if getattr(spec, name) else None)

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        if self.spec.kind == "layer":
            wide = wide - wide.mean(-1, keepdim=True)
        # Not pow(2): from that, torch's exporter makes an RMSNormalization of mixed types, which is
        # not valid.
        mean_square = (wide * wide).mean(-1, keepdim=True)
        wide = wide * torch.rsqrt(mean_square + self.spec.eps)
        if self.weight is not None:
            wide = wide * (self.spec.offset + self.weight.float())
        if self.bias is not None:
            wide = wide + self.bias.float()
        return wide.to(x.dtype)


class RotaryAttention(nn.Module):
    """Attention whose queries and keys are turned by position, as transformers computes it.

    Angles, cos, sin, norms and the softmax are computed in float32 whatever the module's dtype is,
    and cast last: a float16 or bfloat16 angle is wrong by whole turns beyond a few thousand
    positions. Positions only rotate; causality, windows and chunks count cache slots.

    A spec with a latent makes a LatentAttention.
    Works under torch.export, torch.compile(fullgraph=True) and torch.jit.trace.
    """

    inv_freq: Tensor | None
    expression: Expression = Eager()
    keeps_cache = True
    """Whether forward returns the cache beside the output."""

    def __new__(cls, spec: AttentionSpec) -> Self:
        if cls is RotaryAttention and spec.latent is not None:
            from rope_export.attention.latent import LatentAttention

            return super().__new__(LatentAttention)  # type: ignore[return-value]
        return super().__new__(cls)

    def __init__(self, spec: AttentionSpec) -> None:
        super().__init__()
        self.spec = spec
        shapes, dtype = spec.weight_shapes, getattr(torch, spec.dtype)
        for name in [n.removesuffix(".weight") for n in shapes if n.endswith("_proj.weight")]:
            out_features, in_features = shapes[f"{name}.weight"]
            bias = f"{name}.bias" in shapes
            self.add_module(name, nn.Linear(in_features, out_features, bias, dtype=dtype))
        for name, size in spec.norm_sizes.items():
            norm = getattr(spec, name)
            self.add_module(name, Norm(norm, norm.shape(*size), dtype))
        self.sinks = nn.Parameter(torch.zeros(spec.heads, dtype=dtype)) if spec.sinks else None
        self.register_buffer("inv_freq", _inv_freq(spec), persistent=False)

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
        layer.inv_freq = _inv_freq(spec)
        return layer.eval().requires_grad_(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves with the module, but is never cast: inv_freq in float16 is off by whole turns."""
        super()._apply(fn, recurse)
        if self.inv_freq is not None:
            fresh = _inv_freq(self.spec)
            self.inv_freq = fresh if fresh is None else fresh.to(self.inv_freq.device)
        return self

    def forward(
        self,
        hidden_states: Tensor,
        position_ids: Tensor | None = None,
        past_key: Tensor | None = None,
        past_value: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        key_cache: Tensor | None = None,
        value_cache: Tensor | None = None,
        cache_lengths: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """One pass over S new tokens after P cached ones.

        hidden_states: (B, S, hidden_size). position_ids: int64 (B, S), or (A, B, S) where
        positions have several axes; any order and values; needed unless nothing depends on it.
        past_key, past_value: (B, G, P, D or V), keys already turned; P may be 0; both or neither.
        attention_mask: int64 (B, T), 1 = attend, 0 = padding; none means attend to all.
        key_cache, value_cache, cache_lengths: in place of past_key and past_value, a cache of
        fixed size: (B, G, T, D or V), of which the first cache_lengths, int64 (B,), are in use;
        the new entries follow them, row by row.
        Returns: attention_output (B, S, hidden_size), zero before the output projection where a
            token may attend to nothing; the cache after the call, twice (B, G, T, D or V).
        """
        q, k, v = self.project(hidden_states)
        q, k = self.turn(q, k, position_ids)
        if cache_lengths is not None:
            past_key, past_value = key_cache, value_cache
        heads, present_key, present_value = self.expression.attend(
            q,
            k,
            v,
            past_key,
            past_value,
            cache_lengths,
            attention_mask,
            self.spec,
            self.sinks,
        )
        output = self.output(heads, hidden_states)
        return (output, present_key, present_value) if self.keeps_cache else (output,)

    def project(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q (B, H, S, D), k (B, G, S, D) and v (B, G, S, V) of hidden_states (B, S, hidden_size),
        normalised where that comes before the rotation; heads where the expression has them."""
        return tuple(self._project(name, hidden_states) for name in "qkv")  # type: ignore[return-value]

    def _project(self, name: str, hidden_states: Tensor) -> Tensor:
        spec = self.spec
        x = self.get_submodule(f"{name}_proj")(hidden_states)
        width = spec.value_head_dim if name == "v" else spec.head_dim
        norm: NormSpec | None = getattr(spec, f"{name}_norm")
        if norm is not None and norm.over == "all":
            x = self.get_submodule(f"{name}_norm")(x)
        if spec.clip is not None:
            x = x.clamp(-spec.clip, spec.clip)
        if name == "v" and spec.value_scale != 1.0:
            x = x * spec.value_scale
        x = self.expression.split(x, width)
        if norm is not None and norm.over != "all" and not (spec.norm_after_rope and name != "v"):
            x = self.get_submodule(f"{name}_norm")(x)
        return x.transpose(1, 2) if self.expression.heads_axis == 1 else x

    def turn(self, q: Tensor, k: Tensor, position_ids: Tensor | None) -> tuple[Tensor, Tensor]:
        """q and k turned by position, then normalised where that comes after, then q scaled."""
        if self.spec.uses_positions and position_ids is None:
            raise TypeError("position_ids is missing: the layer depends on it")
        if self.spec.rope is not None and position_ids is not None:
            cos, sin = self.cos_sin(position_ids, dtype=q.dtype)
            q, k = (self.expression.rotate(x, cos, sin, self.spec.rope) for x in (q, k))
        if self.spec.norm_after_rope:
            q, k = self._normed_after("q", q), self._normed_after("k", k)
        return self.scaled(q, position_ids), k

    def _normed_after(self, name: str, x: Tensor) -> Tensor:
        norm: NormSpec | None = getattr(self.spec, f"{name}_norm")
        if norm is None:
            return x
        module = self.get_submodule(f"{name}_norm")
        if norm.over == "head" or self.expression.heads_axis == 2:
            return module(x)
        return module(x.transpose(1, 2)).transpose(1, 2)

    def cos_sin(self, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin of every pair's angle: two (B, S, R / 2) of `dtype`.

        position_ids: (B, S) or (A, B, S).
        Error: the float32 angle is off by at most |position| * 2**-24 rad, as in trained models.
        """
        rope = self.spec.rope
        assert rope is not None
        assert self.inv_freq is not None
        inv_freq = self.inv_freq
        if rope.depends_on_length:
            inv_freq = rope.chosen(inv_freq, position_ids.max() + 1)
        at = rope.coordinates(position_ids)
        if rope.axes > 1:
            axis = torch.tensor(rope.pair_axes, device=position_ids.device)
            angles = at.index_select(0, axis).permute(1, 2, 0) * inv_freq
        else:
            angles = at[..., None] * inv_freq
        cos, sin = angles.cos(), angles.sin()
        if rope.attention_factor != 1.0:
            cos, sin = cos * rope.attention_factor, sin * rope.attention_factor
        return cos.to(dtype), (-sin if rope.clockwise else sin).to(dtype)

    def scaled(self, q: Tensor, position_ids: Tensor | None) -> Tensor:
        """q times the factor that its position gives it."""
        scale = self.spec.position_scale
        if scale is None or position_ids is None:
            return q
        lengths = (position_ids.float() + scale.offset) / scale.length
        if scale.form == "log":
            factor = 1 + scale.beta * torch.log1p(lengths.floor())
        else:
            factor = torch.exp(scale.beta * torch.log1p(lengths))
        factor = factor.unsqueeze(self.expression.heads_axis)[..., None]
        return (q.float() * factor).to(q.dtype)

    def output(self, heads: Tensor, hidden_states: Tensor) -> Tensor:
        """Heads as `attend` gives them normalised, gated and projected: (B, S, hidden_size)."""
        if self.expression.heads_axis == 1:
            heads = heads.transpose(1, 2)
        norm = self.spec.o_norm
        if norm is not None and norm.over != "all":
            heads = self.get_submodule("o_norm")(heads)
        if self.spec.gate == "head":
            heads = heads * self.gate(hidden_states)[..., None]
        heads = self.expression.join(heads)
        if norm is not None and norm.over == "all":
            heads = self.get_submodule("o_norm")(heads)
        if self.spec.gate == "feature":
            heads = heads * self.gate(hidden_states)
        return self.get_submodule("o_proj")(heads)

    def gate(self, hidden_states: Tensor) -> Tensor:
        """What heads (B, S, H) or features (B, S, H * V) are multiplied by."""
        logits = self.get_submodule("gate_proj")(hidden_states)
        if self.spec.gate_kind == "softplus":
            return F.softplus(logits.float()).to(logits.dtype)
        return logits.sigmoid()


def _inv_freq(spec: AttentionSpec) -> Tensor | None:
    return None if spec.rope is None else spec.rope.table()

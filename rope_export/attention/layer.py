"""RotaryAttention: the attention layer in plain torch, the truth that every artifact is held to.

Shapes: B batch, S new tokens, P past tokens, T = P + S, H query heads, G key/value heads,
D head_dim, V value_dim, R rotary_dim, A axes of a position.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rope_export.attention.norm import Norm
from rope_export.attention.operators import BY_FEATURE, BY_SLOT, EagerOperators, Operators
from rope_export.attention.request import (
    AttentionRequest,
    Cache,
    Slots,
    Visibility,
    cache_of,
    visibility_facts,
)
from rope_export.attention.rotation import Rotation, cos_sin_of, query_factor_of, rotation_facts
from rope_export.errors import CheckpointError, SpecError
from rope_export.spec import AttentionSpec, NormSpec


class RotaryAttention(nn.Module):
    """Attention whose queries and keys are rotated by position, as transformers computes it.

    Angles, cos, sin, norms and the softmax are computed in float32 whatever the module's dtype is,
    and cast last: a float16 or bfloat16 angle is wrong by whole circles beyond a few thousand
    positions. Positions only rotate; causality, windows and chunks count cache slots.

    Layers of a model can share what does not depend on their weights: `rotation` and `visibility`
    compute it, and `forward` takes it in place of position_ids and attention_mask.

    A spec with a latent makes a LatentAttention (MLA, multi-head latent attention).
    Works under torch.export, torch.compile(fullgraph=True) and torch.jit.trace.
    """

    inv_freq: Tensor | None
    operators: Operators = EagerOperators()
    keeps_cache = True
    """Whether forward returns the cache beside the output."""
    of_latent: ClassVar[type["RotaryAttention"]]
    """The class of layers whose spec has a latent; the package's own `latent` sets it."""

    def __new__(cls, spec: AttentionSpec) -> Self:
        if cls is RotaryAttention and spec.latent is not None:
            return super().__new__(cls.of_latent)  # type: ignore[return-value]
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
        """Moves with the module, but is never cast: inv_freq in float16 is off by whole circles."""
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
        rotation: Rotation | None = None,
        visibility: Visibility | None = None,
    ) -> tuple[Tensor, ...]:
        """One pass over S new tokens after P cached ones.

        hidden_states: (B, S, hidden_size). position_ids: int64 (B, S), or (A, B, S) where
        positions have several axes; any order and values; needed unless nothing depends on it.
        past_key, past_value: (B, G, P, D or V), keys already rotated; P may be 0; both or neither.
        attention_mask: int64 (B, T), 1 = attend, 0 = padding; none means attend to all.
        key_cache, value_cache, cache_lengths: in place of past_key and past_value, a cache of
        fixed size: (B, G, T, D or V), of which each row has filled its first cache_lengths slots,
        int64 (B,); the new entries follow them, row by row.
        rotation: what `rotation` gives, in place of position_ids. visibility: what `visibility`
        gives, in place of attention_mask.
        Returns: attention_output (B, S, hidden_size), zero before the output projection where a
            token may attend to nothing; the cache after the call, twice (B, G, T, D or V).
        """
        cache = cache_of(past_key, past_value, key_cache, value_cache, cache_lengths)
        visibility = self._visibility(visibility, hidden_states, cache, attention_mask)
        tap, by_head = self.operators.tap, self.operators.by_head
        projected = zip("qkv", self.project(hidden_states), strict=True)
        q, k, v = (tap(name, x, by_head) for name, x in projected)
        q, k = self.rotated(q, k, self._rotation(rotation, position_ids, q.dtype))
        q, k = tap("q_ready", q, by_head), tap("k_ready", k, by_head)
        heads, present_key, present_value = self.operators.attend(
            AttentionRequest(
                q=q,
                k=k,
                v=v,
                cache=cache,
                visibility=visibility,
                spec=self.spec,
                sinks=self.sinks,
            )
        )
        output = self.output(tap("context", heads, by_head), hidden_states)
        return (output, present_key, present_value) if self.keeps_cache else (output,)

    def rotation(self, position_ids: Tensor | None, dtype: torch.dtype) -> Rotation:
        """What the positions of a call do to the queries and keys of this layer, and of every layer
        with the same `rotation_facts`.

        position_ids: as for `forward`. dtype: of queries and keys.
        Raises: TypeError without position_ids where the layer depends on them.
        """
        spec, facts = self.spec, rotation_facts(self.spec)
        if not spec.uses_positions:
            return Rotation(facts=facts)
        if position_ids is None:
            raise TypeError("position_ids is missing: the layer depends on it")
        scale = spec.position_scale
        factor = None if scale is None else query_factor_of(scale, position_ids)
        if spec.rope is None:
            return Rotation(facts=facts, query_factor=factor)
        cos, sin = self.cos_sin(position_ids, dtype=dtype)
        cos = self.operators.tap("cos", cos, BY_FEATURE)
        sin = self.operators.tap("sin", sin, BY_FEATURE)
        return Rotation(facts=facts, cos=cos, sin=sin, query_factor=factor)

    def _rotation(
        self, rotation: Rotation | None, position_ids: Tensor | None, dtype: torch.dtype
    ) -> Rotation:
        """The rotation that was handed in, or that of the positions."""
        if rotation is None:
            return self.rotation(position_ids, dtype)
        if position_ids is not None:
            raise TypeError("rotation and position_ids are both given; the layer takes one")
        if rotation.facts != rotation_facts(self.spec):
            raise ValueError("rotation is that of another spec: rope, position_scale or dtype")
        return rotation

    def visibility(
        self, hidden_states: Tensor, cache: Cache, attention_mask: Tensor | None
    ) -> Visibility:
        """Which slots each new token of a call sees in this layer, and in every layer with the same
        `visibility_facts` and operators.

        hidden_states, attention_mask: as for `forward`. cache: as `cache_of` makes it of the
        tensors that `forward` takes, any layer's.
        """
        batch, sequence = hidden_states.shape[:2]
        slots = Slots(
            batch=batch,
            sequence=sequence,
            cache=cache,
            attention_mask=attention_mask,
            device=hidden_states.device,
        )
        visibility = self.operators.visibility(slots, self.spec)
        allowed, bias = (
            None if mask is None else self.operators.tap(name, mask, BY_SLOT)
            for name, mask in (("allowed", visibility.allowed), ("bias", visibility.bias))
        )
        return replace(visibility, allowed=allowed, bias=bias)

    def _visibility(
        self,
        visibility: Visibility | None,
        hidden_states: Tensor,
        cache: Cache,
        attention_mask: Tensor | None,
    ) -> Visibility:
        """The visibility that was handed in, or that of the mask."""
        if visibility is None:
            return self.visibility(hidden_states, cache, attention_mask)
        if attention_mask is not None:
            raise TypeError("visibility and attention_mask are both given; the layer takes one")
        if visibility.facts != visibility_facts(self.spec):
            raise ValueError("visibility is that of another spec: causal, window, chunk or dtype")
        return visibility

    def project(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q (B, H, S, D), k (B, G, S, D) and v (B, G, S, V) of hidden_states (B, S, hidden_size),
        normalised where that comes before the rotation; heads where the operators have them."""
        return tuple(self._project(name, hidden_states) for name in "qkv")  # type: ignore[return-value]

    def _project(self, name: str, hidden_states: Tensor) -> Tensor:
        spec = self.spec
        x = self.get_submodule(f"{name}_proj")(hidden_states)
        x = self.operators.tap(f"{name}_proj", x, BY_FEATURE)
        width = spec.value_head_dim if name == "v" else spec.head_dim
        norm: NormSpec | None = getattr(spec, f"{name}_norm")
        if norm is not None and norm.over == "all":
            x = self.get_submodule(f"{name}_norm")(x)
        if spec.clip is not None:
            x = x.clamp(-spec.clip, spec.clip)
        if name == "v" and spec.value_scale != 1.0:
            x = x * spec.value_scale
        x = self.operators.split(x, width)
        if norm is not None and norm.over != "all" and not (spec.norm_after_rope and name != "v"):
            x = self.get_submodule(f"{name}_norm")(x)
        return x.transpose(1, 2) if self.operators.heads_axis == 1 else x

    def rotated(self, q: Tensor, k: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
        """q and k rotated, then normalised where that comes after, then q scaled."""
        cos, sin, rope = rotation.cos, rotation.sin, self.spec.rope
        if rope is not None and cos is not None and sin is not None:
            q, k = (self.operators.rotate(x, cos, sin, rope) for x in (q, k))
        by_head = self.operators.by_head
        q = self.operators.tap("q_rotated", q, by_head)
        k = self.operators.tap("k_rotated", k, by_head)
        if self.spec.norm_after_rope:
            q, k = self._normed_after("q", q), self._normed_after("k", k)
        return self.scaled(q, rotation), k

    def _normed_after(self, name: str, x: Tensor) -> Tensor:
        norm: NormSpec | None = getattr(self.spec, f"{name}_norm")
        if norm is None:
            return x
        module = self.get_submodule(f"{name}_norm")
        if norm.over == "head" or self.operators.heads_axis == 2:
            return module(x)
        return module(x.transpose(1, 2)).transpose(1, 2)

    def cos_sin(self, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin of this layer's rope; see `cos_sin_of`."""
        assert self.spec.rope is not None
        assert self.inv_freq is not None
        return cos_sin_of(self.spec.rope, self.inv_freq, position_ids, dtype)

    def scaled(self, q: Tensor, rotation: Rotation) -> Tensor:
        """q times the factor that its position gives it."""
        if rotation.query_factor is None:
            return q
        factor = rotation.query_factor.unsqueeze(self.operators.heads_axis)[..., None]
        return (q.float() * factor).to(q.dtype)

    def output(self, heads: Tensor, hidden_states: Tensor) -> Tensor:
        """Heads as `attend` gives them normalised, gated and projected: (B, S, hidden_size)."""
        if self.operators.heads_axis == 1:
            heads = heads.transpose(1, 2)
        norm = self.spec.o_norm
        if norm is not None and norm.over != "all":
            heads = self.get_submodule("o_norm")(heads)
        if self.spec.gate == "head":
            heads = heads * self._tapped_gate(hidden_states)[..., None]
        heads = self.operators.join(heads)
        if norm is not None and norm.over == "all":
            heads = self.get_submodule("o_norm")(heads)
        if self.spec.gate == "feature":
            heads = heads * self._tapped_gate(hidden_states)
        heads = self.operators.tap("heads", heads, BY_FEATURE)
        return self.operators.tap("o_proj", self.get_submodule("o_proj")(heads), BY_FEATURE)

    def _tapped_gate(self, hidden_states: Tensor) -> Tensor:
        return self.operators.tap("gate", self.gate(hidden_states), BY_FEATURE)

    def gate(self, hidden_states: Tensor) -> Tensor:
        """What heads (B, S, H) or features (B, S, H * V) are multiplied by."""
        logits = self.get_submodule("gate_proj")(hidden_states)
        if self.spec.gate_kind == "softplus":
            return F.softplus(logits.float()).to(logits.dtype)
        return logits.sigmoid()


def _inv_freq(spec: AttentionSpec) -> Tensor | None:
    if spec.rope is None:
        return None
    with torch.device("cpu"):  # a layer may be made on meta, which holds no numbers
        table = spec.rope.table()
    pairs = spec.rope.rotary_dim // 2
    if not spec.rope.depends_on_length and (table.dtype, *table.shape) != (torch.float32, pairs):
        raise SpecError(
            f"{type(spec.rope).__name__}.inv_freq gives {str(table.dtype).removeprefix('torch.')}"
            f"{list(table.shape)}; it must be float32[{pairs}], a frequency for each pair."
        )
    return table

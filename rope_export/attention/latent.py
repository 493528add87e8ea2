"""LatentAttention (MLA): keys and values made of one narrow cached vector per token.

Shapes as in `attention.layer`; L kv_rank, N nope_dim, R rope_dim.
"""

import torch
from torch import Tensor

from rope_export.attention.layer import RotaryAttention
from rope_export.attention.norm import Norm
from rope_export.attention.operators import BY_FEATURE, BY_HEAD
from rope_export.attention.request import (
    AttentionRequest,
    FixedCache,
    NoCache,
    Visibility,
    cache_of,
)
from rope_export.attention.rotation import Rotation
from rope_export.spec import AttentionSpec, NormSpec


class LatentAttention(RotaryAttention):
    """Multi-head latent attention. The cache holds the normalised latent and the rotated features
    that all heads share, not keys and values.

    Source: DeepSeek-V2, arXiv:2405.04434, section 2.1.
    """

    def __init__(self, spec: AttentionSpec) -> None:
        super().__init__(spec)
        assert spec.latent is not None
        self.latent, dtype = spec.latent, getattr(torch, spec.dtype)
        norm = NormSpec(eps=self.latent.norm_eps)
        if self.latent.q_rank is not None:
            self.q_a_norm = Norm(norm, (self.latent.q_rank,), dtype)
        self.kv_a_norm = Norm(norm, (self.latent.kv_rank,), dtype)

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        position_ids: Tensor | None = None,
        past_latent: Tensor | None = None,
        past_key_rope: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        latent_cache: Tensor | None = None,
        key_rope_cache: Tensor | None = None,
        cache_lengths: Tensor | None = None,
        rotation: Rotation | None = None,
        visibility: Visibility | None = None,
    ) -> tuple[Tensor, ...]:
        """One pass over S new tokens after P cached ones.

        hidden_states, position_ids, attention_mask, cache_lengths, rotation, visibility: as for
        RotaryAttention. past_latent: (B, P, L), normalised. past_key_rope: (B, P, R), rotated.
        latent_cache, key_rope_cache: in their place, with cache_lengths, a cache of fixed size, P
        being T.
        Returns: attention_output (B, S, hidden_size), and the cache after the call, (B, T, L) and
            (B, T, R).
        """
        spec, latent = self.spec, self.latent
        cache = cache_of(past_latent, past_key_rope, latent_cache, key_rope_cache, cache_lengths)
        visibility = self._visibility(visibility, hidden_states, cache, attention_mask)
        q = self.operators.split(self._queries(hidden_states), spec.head_dim).transpose(1, 2)
        q_nope, q_rope = q.split((latent.nope_dim, latent.rope_dim), dim=-1)
        tap, by_head = self.operators.tap, self.operators.by_head
        compressed = tap("kv_a_proj", self.get_submodule("kv_a_proj")(hidden_states), BY_FEATURE)
        new_latent, key_rope = compressed.split((latent.kv_rank, latent.rope_dim), dim=-1)
        rotation = self._rotation(rotation, position_ids, q.dtype)
        q_rope, key_rope = self.rotated(q_rope, key_rope[:, None], rotation)
        q = tap("q_ready", torch.cat((self.scaled(q_nope, rotation), q_rope), dim=-1), by_head)
        new_latent = self.kv_a_norm(new_latent)
        if latent.kv_factor != 1.0:
            new_latent = new_latent * latent.kv_factor
        new_latent = tap("latent", new_latent, BY_FEATURE)
        present_latent, present_key_rope = new_latent, key_rope[:, 0]
        if not isinstance(cache, NoCache):
            lengths = cache.lengths if isinstance(cache, FixedCache) else None
            present_latent = self.operators.keep(cache.key, present_latent, lengths)
            present_key_rope = self.operators.keep(cache.value, present_key_rope, lengths)
        k, v = self._expand(present_latent, present_key_rope)
        k, v = tap("keys", k, BY_HEAD), tap("values", v, BY_HEAD)
        heads, _, _ = self.operators.attend(
            AttentionRequest(
                q=q,
                k=k,
                v=v,
                cache=NoCache(),
                visibility=visibility,
                spec=spec,
                sinks=self.sinks,
            )
        )
        output = self.output(tap("context", heads, by_head), hidden_states)
        return (output, present_latent, present_key_rope) if self.keeps_cache else (output,)

    def _queries(self, hidden_states: Tensor) -> Tensor:
        if self.latent.q_rank is None:
            q = self.get_submodule("q_proj")(hidden_states)
            return self.operators.tap("q_proj", q, BY_FEATURE)
        narrow = self.get_submodule("q_a_proj")(hidden_states)
        narrow = self.q_a_norm(self.operators.tap("q_a_proj", narrow, BY_FEATURE))
        if self.latent.q_factor != 1.0:
            narrow = narrow * self.latent.q_factor
        narrow = self.operators.tap("q_latent", narrow, BY_FEATURE)
        q = self.get_submodule("q_b_proj")(narrow)
        return self.operators.tap("q_b_proj", q, BY_FEATURE)

    def _expand(self, latent: Tensor, key_rope: Tensor) -> tuple[Tensor, Tensor]:
        """Keys (B, H, T, N + R) and values (B, H, T, V) of the whole cache."""
        width = self.latent.nope_dim + self.spec.value_head_dim
        heads = self.operators.split(self.get_submodule("kv_b_proj")(latent), width)
        k_nope, v = heads.transpose(1, 2).split(
            (self.latent.nope_dim, self.spec.value_head_dim), dim=-1
        )
        shared = key_rope[:, None].expand(-1, self.spec.heads, -1, -1)
        return torch.cat((k_nope, shared), dim=-1), v


RotaryAttention.of_latent = LatentAttention

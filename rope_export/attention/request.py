"""What one call of an attention layer hands to its operators: cache, slots, visibility, tensors.

Shapes as in `attention.layer`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rope_export.spec import AttentionSpec


@dataclass(frozen=True)
class NoCache:
    """A call without a cache: its new tokens are all there is."""

    @property
    def slots(self) -> int:
        return 0


@dataclass(frozen=True, kw_only=True)
class GrowingCache:
    """A cache of P slots, after which a call's new entries are appended.

    key, value: (B, G, P, D or V), keys already rotated; of MLA (multi-head latent attention), the
    normalised latent and the rotated features that all heads share, (B, P, L) and (B, P, R).
    """

    key: Tensor
    value: Tensor

    @property
    def slots(self) -> int:
        return self.key.shape[-2]


@dataclass(frozen=True, kw_only=True)
class FixedCache:
    """A cache allocated once, of T slots, into which a call's new entries are written.

    key, value: as of `GrowingCache`, with T for P. lengths: int64 (B,), slots that each row has
    filled before the call; its new entries follow them.
    """

    key: Tensor
    value: Tensor
    lengths: Tensor

    @property
    def slots(self) -> int:
        return self.key.shape[-2]


Cache = NoCache | GrowingCache | FixedCache


def cache_of(
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    key_cache: Tensor | None = None,
    value_cache: Tensor | None = None,
    cache_lengths: Tensor | None = None,
) -> Cache:
    """The cache that the tensors of one call make.

    Raises: TypeError if they are of two caches, or not all of one.
    """
    growing = [x for x in (past_key, past_value) if x is not None]
    fixed = [x for x in (key_cache, value_cache, cache_lengths) if x is not None]
    if not growing and not fixed:
        return NoCache()
    if past_key is not None and past_value is not None and not fixed:
        return GrowingCache(key=past_key, value=past_value)
    if key_cache is None or value_cache is None or cache_lengths is None or growing:
        raise TypeError(
            "a cache is both of its past tensors, or both of its fixed ones with cache_lengths"
        )
    return FixedCache(key=key_cache, value=value_cache, lengths=cache_lengths)


@dataclass(frozen=True, kw_only=True)
class Slots:
    """The cache slots of one call, of which its new tokens see some.

    batch, sequence: rows and new tokens. cache: what came before. attention_mask: int64 (B, T),
    0 where a slot is padding, or none. Of a fixed cache it may cover fewer slots than there are,
    where the operators look at no other.
    """

    batch: int
    sequence: int
    cache: Cache
    attention_mask: Tensor | None
    device: torch.device

    @property
    def total(self) -> int:
        """Slots after the call that are looked at."""
        if isinstance(self.cache, FixedCache) and self.attention_mask is not None:
            return self.attention_mask.shape[1]
        if isinstance(self.cache, FixedCache):
            return self.cache.slots
        return self.cache.slots + self.sequence

    @property
    def lengths(self) -> Tensor | None:
        """Filled slots of each row before the call, of a fixed cache."""
        return self.cache.lengths if isinstance(self.cache, FixedCache) else None


@dataclass(frozen=True, kw_only=True)
class Visibility:
    """Which slots each new token sees, in the form in which one set of operators takes it.

    It depends on the call and on what `visibility_facts` names of a spec, so layers that agree in
    that can share one. Operators that count causality themselves have no `allowed` or `bias`.

    facts: `visibility_facts` of the spec that it was computed for. padded: whether a mask may leave
    a token nothing to see.
    allowed: bool (1 or B, 1, S, T), true where a slot is seen. bias: of the same shape, what is
    added to the scores. sees_any: bool, broadcast to the heads, false for tokens that see nothing.
    used: integers (B,), filled slots of each row, counted as the operators want it. bound: one
    integer, at least as large as each of them. new: integers (B,), new tokens of each row.
    """

    facts: tuple[object, ...]
    padded: bool = False
    allowed: Tensor | None = None
    bias: Tensor | None = None
    sees_any: Tensor | None = None
    used: Tensor | None = None
    bound: Tensor | None = None
    new: Tensor | None = None


def visibility_facts(spec: AttentionSpec) -> tuple[object, ...]:
    """What a `Visibility` depends on of a spec; it can serve every layer in which this is equal."""
    latent = spec.latent is not None
    return spec.causal, spec.window, spec.window_after, spec.chunk, latent, spec.dtype


@dataclass(frozen=True, kw_only=True)
class AttentionRequest:
    """One attention to compute: queries over the slots of a cache and new keys and values.

    q: (B, H, S, D). k, v: (B, G, S, D or V), or all T slots where `cache` is `NoCache` and the
    layer keeps its cache in another form, as MLA does. Heads lie where the operators have them.
    sinks: (H,), scores that take part in the softmax and have no value.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    cache: Cache
    visibility: Visibility
    spec: AttentionSpec
    sinks: Tensor | None

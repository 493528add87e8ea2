"""One call of the reference layer, with every quantity on the way."""

from dataclasses import dataclass, field

import numpy as np

from rope_export.interface import cache_names
from rope_export.parity.layer.attending import written

Float64 = np.ndarray


@dataclass(frozen=True, kw_only=True)
class Trace:
    """One call: B rows, S new tokens, T slots, H heads, G kv heads of D features, V of a value.

    x (B, S, hidden); projected: the named results of projections and norms before the rotation,
    each as it was first; q (B, H, S, D) and k (B, G, S, D) before the rotation, in MLA the rotated
    features only; cos, sin (B, 1, S, R / 2); rotated_q, rotated_k: after the rotation, and
    ready_q after norms and scale, (B, H, S, D); keys, values (B, G, T, D or V), G being H in MLA;
    cache: what the layer caches, by name; raw_scores, scores (B, H, S, T): before and after the
    softcap; weights (B, H, S, T); mixed (B, S, H, V): weighted values; heads (B, S, H * V): after
    norm and gate; output (B, S, hidden); visible (B, S, T): which slots each token may see;
    attended (B, S): may see at least one; starts (B,): the slot of each row's first new token;
    fixed: whether the cache is of fixed size.
    """

    x: Float64
    projected: dict[str, Float64]
    q: Float64
    k: Float64
    cos: Float64
    sin: Float64
    rotated_q: Float64
    rotated_k: Float64
    ready_q: Float64
    q_factor: Float64
    keys: Float64
    values: Float64
    cache: dict[str, Float64]
    raw_scores: Float64
    scores: Float64
    weights: Float64
    mixed: Float64
    gate: Float64 | None
    heads: Float64
    output: Float64
    visible: np.ndarray
    attended: np.ndarray
    starts: np.ndarray
    fixed: bool

    @property
    def main_output(self) -> str:
        """What an artifact calls the attention output."""
        return "attention_output"

    def cache_output(self, name: str) -> str:
        """What an artifact calls `name` of the cache after the call."""
        return cache_names(name, "fixed" if self.fixed else "growing")[1]

    @property
    def outputs(self) -> dict[str, Float64]:
        """The outputs by the names that an artifact gives them."""
        cache = {self.cache_output(name): value for name, value in self.cache.items()}
        return {self.main_output: self.output, **cache}

    def new(self, cached: np.ndarray) -> np.ndarray:
        """The part of a cache (B, ..., T, D) that this call wrote, (B, ..., S, D)."""
        count = self.x.shape[1]
        rows = [x[..., at : at + count, :] for x, at in zip(cached, self.starts, strict=True)]
        return np.stack(rows)

    def placed(self, new: np.ndarray) -> np.ndarray:
        """A cache of zeros with `new` (B, ..., S, D) in the slots that this call writes."""
        zeros = np.zeros((*new.shape[:-2], self.keys.shape[2], new.shape[-1]))
        return written(zeros, new, self.starts)


@dataclass(frozen=True, kw_only=True)
class New:
    """What the new tokens bring: queries ready for the scores, and the new part of the cache."""

    projected: dict[str, Float64]
    q: Float64
    k: Float64
    cos: Float64
    sin: Float64
    rotated_q: Float64
    rotated_k: Float64
    ready_q: Float64
    q_factor: Float64
    cache: dict[str, Float64] = field(default_factory=dict)

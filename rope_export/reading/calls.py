"""The calls on which transformers' attention and ours are compared, and their inputs."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

from rope_export.spec import AttentionSpec

LONGEST = 2**17
"""Slots beyond which no cache is drawn, to stay cheap."""
BEYOND = "beyond position"
"""What calls are named whose positions a model may have no table for."""
LIMITS = ("sliding_window", "attention_chunk_size", "window_size", "local_attention")
"""Config keys that may hide old tokens from a layer."""


@dataclass(frozen=True, kw_only=True)
class Calls:
    """Calls of the layer that go on from each other.

    steps: of each call its name and its new tokens. past: slots that are drawn before the first.
    start: position of the first slot; counted: positions are left to the model to count. padded:
    slots of the last row, on the left, that are padding.
    """

    steps: tuple[tuple[str, int], ...]
    batch: int = 1
    past: int = 0
    start: int = 0
    counted: bool = False
    padded: int = 0

    @property
    def name(self) -> str:
        return self.steps[0][0]

    @property
    def total(self) -> int:
        return self.past + sum(count for _, count in self.steps)

    def parts(self) -> Iterator[tuple[str, slice]]:
        """Each call's name and its new slots."""
        at = self.past
        for name, count in self.steps:
            yield name, slice(at, at + count)
            at += count

    def hidden(self, width: int) -> Tensor:
        """float64 (B, T - past, width): unit normal, of few enough bits for every dtype."""
        return self._normal("hidden", (self.batch, self.total - self.past, width))

    def mask(self) -> Tensor | None:
        """int64 (B, T), 0 where padding is."""
        if not self.padded:
            return None
        mask = torch.ones(self.batch, self.total, dtype=torch.int64)
        mask[-1, : self.padded] = 0
        return mask

    def positions(self, axes: int) -> Tensor:
        """(B, T), or (axes, B, T) with other positions on every axis. Padding is not counted."""
        rows = torch.arange(self.total).expand(self.batch, -1)
        mask = self.mask()
        if mask is not None:
            rows = (mask.cumsum(-1) - 1).clamp(min=0)
        rows = self.start + rows
        if axes == 1 or self.counted:
            return rows if axes == 1 else rows.expand(axes, -1, -1)
        others = (rows // 2 + 3 * at + rows % (2 + at) for at in range(1, axes))
        return torch.stack([rows, *others])

    def cache(self, spec: AttentionSpec) -> dict[str, Tensor]:
        """The drawn past, float64: key and value (B, G, P, features)."""
        shape = (self.batch, spec.kv_heads, self.past)
        return {
            "key": self._normal("key", (*shape, spec.head_dim)),
            "value": self._normal("value", (*shape, spec.value_head_dim)),
        }

    def _normal(self, what: str, shape: tuple[int, ...]) -> Tensor:
        stream = torch.Generator().manual_seed(crc32(f"{what} {self.name}".encode()))
        return torch.randn(shape, generator=stream).half().bfloat16().double()


def every_call(spec: AttentionSpec, config: Any) -> Iterator[Calls]:
    """All that can show a difference in reading, the cheap ones first.

    config: transformers', from which lengths are taken that ours may have missed.
    """
    plain, padded = [("short", 7)], [("left padding", 6)]
    if spec.causal:
        plain += [("decode", 1), ("chunk", 5)]
        padded += [("left padding, decode", 1)]
    yield Calls(steps=tuple(plain), batch=2, counted=True)
    yield Calls(steps=tuple(padded), batch=2, padded=2)
    for limit in limits(spec, config):
        name = f"window {limit} exceeded"
        if spec.causal and spec.latent is None and limit <= LONGEST:
            yield Calls(steps=((name, 2),), past=limit + 3)
        elif limit <= 512:
            yield Calls(steps=((name, 2 * limit + 3),), counted=True)
    for length in lengths(config):
        yield Calls(steps=((f"{BEYOND} {length}", 4),), start=length)


def limits(spec: AttentionSpec, config: Any) -> list[int]:
    """Windows and chunks, ours and those that the config names."""
    named = [getattr(config, key, None) for key in LIMITS]
    sizes = {spec.window, spec.chunk, spec.window_after, *(x for x in named if type(x) is int)}
    return sorted(x for x in sizes if isinstance(x, int) and x > 0)


def lengths(config: Any) -> list[int]:
    """Contexts beyond which positions are tried: the original one and the longest."""
    rope = getattr(config, "rope_parameters", None)
    places = [rope, *rope.values()] if isinstance(rope, dict) else []
    keys = ("original_max_position_embeddings", "max_position_embeddings")
    values = [x.get(keys[0]) for x in places if isinstance(x, dict)]
    values += [getattr(config, key, None) for key in keys]
    usable = {int(x) for x in values if isinstance(x, int | float) and 0 < x < 2**20}
    return sorted(usable) or [4_096]

"""What the layers of a decoder do not have of their own, computed once: cos and sin for each base,
masks for each window, counts of slots, and the place of the last token.

Shapes as in `attention.layer`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from rope_export.arrays import to_numpy
from rope_export.attention.layer import RotaryAttention
from rope_export.attention.request import (
    Cache,
    FixedCache,
    GrowingCache,
    Slots,
    Visibility,
    visibility_facts,
)
from rope_export.attention.rotation import Rotation, rotation_facts
from rope_export.interface import TensorType
from rope_export.lowerings import Lowering
from rope_export.spec import AttentionSpec

SIZES = (
    {"batch": 3, "sequence": 5, "past": 6, "total": 11, "capacity": 13},
    {"batch": 7, "sequence": 17, "past": 12, "total": 29, "capacity": 37},
)
"""Two sizes of every dynamic axis: an axis of a tensor is dynamic if its size differs."""

FILLED = "filled"
"""The name of the filled slots of each row of a fixed cache, int64 (B): a call may leave its
lengths out."""

SLOTS = "slots"
"""The name of the slots of each row's new tokens, int64 (B, S), which are their positions where
there is no padding."""

NAN = "nan_if_padded"
"""The name of a number that is 0, and NaN where the mask has a 0."""

LAST = "last_token"
"""The name of the index of each row's last new token, int64 (B)."""

PLAIN = "is_plain"
"""The name of the boolean that says whether a call has no padding, has each token at the position
of its slot, and has one row, one new token of each, or nothing in its cache."""

ROWS = 8192
"""Positions that tables of cos and sin have at most; a call beyond them is not plain."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One tensor that layers share.

    group: Rotation or Visibility. facts: of a spec, that it depends on. field: of the group.
    tensor: its name, dtype and symbolic shape. padding: whether it says nothing but the mask.
    """

    group: type[Rotation] | type[Visibility]
    facts: tuple[Any, ...]
    field: str
    tensor: TensorType
    padding: bool = False


class Shared(nn.Module):
    """Computes every `Part` of a decoder's layers from the inputs of a call.

    layers: one lowered attention layer of each kind. fixed: whether the cache is. positions: how
    many the model was made for, if any number. covering: whether its mask has every slot, and its
    lengths are always given. padding: whether tokens may be padding.
    """

    def __init__(
        self,
        layers: Sequence[RotaryAttention],
        *,
        fixed: bool,
        last: bool,
        positions: int | None = None,
        covering: bool = False,
        padding: bool = True,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.padding = padding
        self.rows = min(positions or ROWS, ROWS) if padding else positions or ROWS
        self.fixed, self.last, self.covering = fixed, last, covering
        self.parts = self._parts()

    @property
    def outputs(self) -> list[str]:
        further = [FILLED] if self.gives_lengths else []
        further += [LAST] if self.last else []
        if not self.padding:
            further += [SLOTS, NAN]
        elif self.has_two_forms:
            further += [PLAIN]
        return [part.tensor.name for part in self.parts] + further

    @property
    def gives_lengths(self) -> bool:
        """Whether the lengths of a call are not always those that it is given."""
        return self.fixed and not self.covering

    @property
    def has_two_forms(self) -> bool:
        """Whether a form of attention that knows nothing of padding is enough for some calls."""
        return any(part.padding for part in self.parts)

    @torch.no_grad()
    def tables(self) -> dict[str, NDArray[np.generic]]:
        """cos and sin of the first positions, (rows, R / 2), by the names of their parts, where
        attention can rotate by them."""
        tables = {}
        for layer in self.layers:
            assert isinstance(layer, RotaryAttention)
            assert isinstance(layer.operators, Lowering)
            if not layer.operators.rotates_inside(layer.spec):
                continue
            facts = rotation_facts(layer.spec)
            dtype: torch.dtype = getattr(torch, layer.spec.dtype)
            every = tensors_of(layer.rotation(torch.arange(self.rows)[None], dtype))
            for part in self.parts:
                if part.group is Rotation and part.facts == facts and part.field in every:
                    tables[part.tensor.name] = to_numpy(every[part.field][0])
        return tables

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """tensors: attention_mask and position_ids of the decoder's interface, the keys of one
        layer's cache, for their number of slots, and cache_lengths where it is fixed."""
        attention_mask, position_ids, past, *given = tensors
        batch, sequence = position_ids.shape
        lengths = None
        if given:
            lengths = given[0]
            if not self.covering:
                lengths = _lengths(attention_mask, lengths, batch, sequence)
        cache: Cache = GrowingCache(key=past, value=past)
        if lengths is not None:
            cache = FixedCache(key=past, value=past, lengths=lengths)
        values = self._values(attention_mask, position_ids, cache)
        outputs = [values[part.group, part.facts, part.field] for part in self.parts]
        if self.gives_lengths and lengths is not None:
            outputs.append(lengths)
        if self.last:
            outputs.append(_last_token(attention_mask, lengths, sequence))
        if not self.padding:
            dtype: torch.dtype = past.dtype
            zero = torch.zeros((), dtype=dtype)
            outputs += [_slots(attention_mask, lengths, sequence).expand(batch, sequence)]
            outputs += [zero / attention_mask.amin(dim=(0, 1)).to(dtype)]
        elif self.has_two_forms:
            outputs.append(_is_plain(attention_mask, position_ids, lengths, self.rows))
        return tuple(outputs)

    def _values(
        self, mask: Tensor, positions: Tensor, cache: Cache
    ) -> dict[tuple[Any, ...], Tensor]:
        values: dict[tuple[Any, ...], Tensor] = {}
        for layer in self.layers:
            assert isinstance(layer, RotaryAttention)
            operators = layer.operators
            assert isinstance(operators, Lowering)
            dtype: torch.dtype = getattr(torch, layer.spec.dtype)
            rotation = layer.rotation(_on_axes(positions, layer.spec), dtype)
            slots = Slots(
                batch=positions.shape[0],
                sequence=positions.shape[1],
                cache=cache,
                attention_mask=mask if self._covers(operators) else _widened(mask, cache),
                device=positions.device,
            )
            # Tokens that may attend to nothing are padding, which no other token attends to.
            visibility = replace(operators.visibility(slots, layer.spec), sees_any=None)
            for group in (rotation, visibility):
                for name, tensor in tensors_of(group).items():
                    values.setdefault((type(group), group.facts, name), tensor)
        return values

    def _covers(self, operators: Lowering) -> bool:
        """Whether a lowering can take the mask as it is."""
        return self.covering or operators.stale_slots == "any"

    def _is_padding(self, facts: tuple[Any, ...]) -> bool:
        """Whether a bias of these facts says nothing but the mask."""
        for layer in self.layers:
            assert isinstance(layer, RotaryAttention)
            assert isinstance(layer.operators, Lowering)
            if visibility_facts(layer.spec) == facts:
                return layer.operators.bias_is_padding(layer.spec)
        return False

    @torch.no_grad()
    def _parts(self) -> list[Part]:
        """Every part, with its symbolic shape: by what it is in two calls of other sizes."""
        calls = []
        for sizes in SIZES:
            batch, sequence = sizes["batch"], sizes["sequence"]
            slots = sizes["capacity"] if self.fixed else sizes["past"]
            past = torch.zeros(batch, 1, slots, 1)
            lengths = torch.full((batch,), sizes["past"]) if self.fixed else None
            covered = slots if self.covering else sizes["total"]
            mask = torch.ones(batch, covered, dtype=torch.int64)
            cache: Cache = GrowingCache(key=past, value=past)
            if lengths is not None:
                cache = FixedCache(key=past, value=past, lengths=lengths)
            positions = torch.zeros(batch, sequence, dtype=torch.int64)
            calls.append(self._values(mask, positions, cache))
        return [
            Part(
                group=key[0],
                facts=key[1],
                field=key[2],
                tensor=TensorType(
                    name=f"{key[2]}_{at}",
                    dtype=str(first.dtype).removeprefix("torch."),
                    shape=_symbolic(first, calls[1][key]),
                ),
                padding=key[2] == "bias" and self._is_padding(key[1]),
            )
            for at, (key, first) in enumerate(calls[0].items())
        ]


def _on_axes(positions: Tensor, spec: AttentionSpec) -> Tensor:
    """The positions of text on every axis of a rotation that has several, (A, B, S)."""
    axes = 1 if spec.rope is None else spec.rope.axes
    return positions if axes == 1 else positions.expand(axes, *positions.shape)


def tensors_of(group: Rotation | Visibility) -> dict[str, Tensor]:
    """The tensors of a rotation or a visibility by the names of their fields."""
    values = {field.name: getattr(group, field.name) for field in fields(group)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def _symbolic(first: Tensor, second: Tensor) -> tuple[int | str, ...]:
    names = {tuple(sizes[name] for sizes in SIZES): name for name in SIZES[0]}
    return tuple(
        one if one == other else names[one, other]
        for one, other in zip(first.shape, second.shape, strict=True)
    )


def parts_of(layer: RotaryAttention, parts: Sequence[Part]) -> list[Part]:
    """Those parts that one layer takes."""
    facts = {Rotation: rotation_facts(layer.spec), Visibility: visibility_facts(layer.spec)}
    return [part for part in parts if facts[part.group] == part.facts]


def grouped(
    layer: RotaryAttention, parts: Sequence[Part], tensors: Mapping[str, Tensor]
) -> tuple[Rotation, Visibility]:
    """A layer's rotation and visibility, of tensors by the names of `parts`."""
    values: dict[type, dict[str, Any]] = {Rotation: {}, Visibility: {}}
    for part in parts_of(layer, parts):
        values[part.group][part.field] = tensors[part.tensor.name]
    return (
        Rotation(facts=rotation_facts(layer.spec), **values[Rotation]),
        Visibility(facts=visibility_facts(layer.spec), padded=True, **values[Visibility]),
    )


def _widened(mask: Tensor, cache: Cache) -> Tensor:
    """The mask of every slot of a fixed cache: those that it does not cover are not attended to."""
    if not isinstance(cache, FixedCache):
        return mask
    return F.pad(mask, (0, cache.slots - mask.shape[1]))


def _lengths(mask: Tensor, lengths: Tensor, batch: int, sequence: int) -> Tensor:
    """Filled slots of each row of a fixed cache before the call, int64 (B); where none are given
    (-1), as many as the mask covers beside the new tokens."""
    # One length may stand for all rows, of which the traced shapes know nothing.
    ops = torch.onnx.ops
    rows = ops.symbolic(
        "::Shape", (mask,), {"start": 0, "end": 1}, dtype=torch.int64, shape=(1,), version=15
    )
    each = ops.symbolic("::Expand", (lengths, rows), dtype=torch.int64, shape=(batch,), version=13)
    return torch.where(each < 0, mask.shape[1] - sequence, each)


def _last_token(mask: Tensor, lengths: Tensor | None, sequence: int) -> Tensor:
    """The index of each row's last new token whose mask is 1, or of the last, int64 (B)."""
    new = torch.arange(sequence, device=mask.device)
    if lengths is None:
        own = mask[:, mask.shape[1] - sequence :]
    else:
        at = lengths[:, None] + new
        own = mask.gather(1, at.clamp(max=mask.shape[1] - 1))
    real = own != 0
    last = torch.where(real, new, -1).amax(dim=1)
    return torch.where(last < 0, sequence - 1, last)


def _is_plain(mask: Tensor, positions: Tensor, lengths: Tensor | None, rows: int) -> Tensor:
    """`PLAIN`, for tables of so many rows."""
    (batch, sequence), total = positions.shape, mask.shape[1]
    aside = (positions - _slots(mask, lengths, sequence)).abs().amax(dim=(0, 1))
    several = (batch - 1) * (sequence - 1) * (total - sequence)
    beyond = torch.full((), total) > rows
    return (mask.amin(dim=(0, 1)) == 1) & (aside + several == 0) & ~beyond


def _slots(mask: Tensor, lengths: Tensor | None, sequence: int) -> Tensor:
    """The slots of the new tokens, int64 (1 or B, S)."""
    new = torch.arange(sequence, device=mask.device)
    if lengths is None:
        return mask.shape[1] - sequence + new[None]
    return lengths[:, None] + new

"""A captured call of transformers' module in our terms: inputs by our names, and the outputs that
are expected of them."""

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from rope_export.spec import AttentionSpec
from tests.conformance.families.capture import Call, Capture


def comparable(call: Call) -> bool:
    """Whether it is one to compare: transformers makes NaN of tokens that see nothing, which then
    spoils the padded calls of the layers above."""
    return call.kind != "padded" or bool(
        call.mask_2d is not None and torch.isfinite(call.hidden_states).all()
    )


def inputs_of(call: Call, spec: AttentionSpec) -> dict[str, Tensor]:
    """The call's inputs by our names, with a batch axis."""
    hidden = _batched(call.hidden_states)
    batch, sequence = hidden.shape[:2]
    found = {"hidden_states": hidden}
    if spec.uses_positions:
        found["position_ids"] = _positions(call, spec, batch, sequence)
    real = padding(call)
    if real is not None and real.shape[-1] == call.past + sequence and pieces(call) is None:
        found["attention_mask"] = real.long().expand(batch, -1)
    return found


def _batched(tensor: Tensor) -> Tensor:
    """(B, S, features), of packed tokens (S, features) or a grid (B, H, W, features)."""
    if tensor.ndim == 2:
        return tensor[None]
    return tensor.flatten(1, -2) if tensor.ndim == 4 else tensor


def _allowed(call: Call) -> Tensor | None:
    """The module's own mask, (B, S, T), true where a token sees a slot."""
    mask = call.attention_mask
    if mask is None or mask.ndim != 4:
        return None
    return (mask if mask.dtype is torch.bool else mask >= 0)[:, 0]


def padding(call: Call) -> Tensor | None:
    """Which slots some token sees, (B, T); none where all are seen. A window or a chunk hides no
    slot from every token of a call."""
    if call.kind == "decode":  # a window may hide them from its one token
        mask = call.mask_2d
        return None if mask is None or bool(mask.all()) else mask.bool()
    seen = _allowed(call)
    if seen is None:
        return None
    slots = seen.any(-2)
    return None if bool(slots.all()) else slots


def pieces(call: Call) -> list[slice] | None:
    """Parts of a packed sequence whose tokens see exactly each other, from the mask."""
    seen = _allowed(call)
    if seen is None or seen.shape[0] != 1 or seen.shape[1] != seen.shape[2]:
        return None
    seen = seen[0]
    inner = [i for i in range(1, len(seen)) if not bool((seen[i] & seen[i - 1]).any())]
    cuts = [0, *inner, len(seen)]
    found = [slice(a, b) for a, b in itertools.pairwise(cuts)]
    blocks = sum((part.stop - part.start) ** 2 for part in found)
    whole = all(bool(seen[part, part].all()) for part in found)
    return found if whole and int(seen.sum()) == blocks else None


def segments(call: Call) -> list[slice]:
    """Parts of a packed sequence that do not see each other."""
    bounds = call.arguments.get("cu_seqlens")
    if isinstance(bounds, Tensor):
        ends = bounds.tolist()
        return [slice(a, b) for a, b in itertools.pairwise(ends)]
    return pieces(call) or [slice(None)]


def _positions(call: Call, spec: AttentionSpec, batch: int, sequence: int) -> Tensor:
    """(batch, sequence), or (axes, batch, sequence)."""
    axes = 1 if spec.rope is None else spec.rope.axes
    positions = call.position_ids
    if axes > 1:
        return _several(call, spec, batch, sequence)
    if positions is None:
        positions = call.past + torch.arange(sequence)
    positions = positions.long()
    if positions.ndim == 3:  # several axes where the layer rotates by one
        positions = positions[0]
    return positions.reshape(-1, sequence).expand(batch, sequence).contiguous()


def _several(call: Call, spec: AttentionSpec, batch: int, sequence: int) -> Tensor:
    """Positions of several axes, which towers give in as many ways."""
    assert spec.rope is not None
    axes, grid = spec.rope.axes, call.position_ids
    if grid is None and spec.rope.rope_type == "centred":
        return _after_prefix(call, batch, sequence)
    if grid is None:
        return _square(batch, sequence)
    spacing = getattr(spec.rope, "spacing", 1.0)
    grid = (grid / spacing).round().long() if spacing != 1.0 else grid.long()
    if grid.ndim == 3 and grid.shape[-1] == axes and grid.shape[1] == sequence:
        return grid.permute(2, 0, 1).expand(axes, batch, -1).contiguous()
    if grid.shape[-1] == axes and grid.shape[0] != axes:  # one row a token
        grid = grid.reshape(-1, sequence, axes).permute(2, 0, 1)
    grid = grid[-axes:] if grid.ndim == 3 and grid.shape[0] > axes else grid
    grid = grid.reshape(axes, -1, sequence) if grid.ndim == 3 else grid.expand(axes, -1, -1)
    grid = grid.expand(axes, batch, sequence).contiguous()
    embeddings = call.arguments.get("position_embeddings")
    if isinstance(embeddings, tuple) and embeddings[0].ndim == 2:
        return _reordered(grid, embeddings[0], spec)
    return grid


def _square(batch: int, sequence: int) -> Tensor:
    """Patches of a square image, counted from 1, and a class token at 0 after them: Llama 4."""
    side = math.isqrt(sequence - 1)
    at = torch.arange(side * side)
    patches = torch.stack((at // side + 1, at % side + 1))
    found = torch.cat((patches, torch.zeros(2, 1, dtype=patches.dtype)), dim=1)
    return found[:, None].expand(2, batch, -1).contiguous()


def _after_prefix(call: Call, batch: int, sequence: int) -> Tensor:
    """Rows and columns of a square image's patches, after tokens that are not rotated: DINOv3."""
    patches = call.position_embeddings[0].shape[-2]
    at, side = torch.arange(patches), math.isqrt(patches)
    prefix = torch.full((2, sequence - patches), -1)
    found = torch.cat((prefix, torch.stack((at // side, at % side))), dim=1)
    return found[:, None].expand(2, batch, -1).contiguous()


def _reordered(positions: Tensor, cos: Tensor, spec: AttentionSpec) -> Tensor:
    """Packed patches in the order of their windows, which the tower makes after it has counted
    them: the order whose cosines are the module's."""
    rope = spec.rope
    assert rope is not None
    if cos.shape[-1] != rope.rotary_dim:
        return positions
    axis = torch.tensor(rope.pair_axes)
    angles = positions[:, 0].index_select(0, axis).T.float() * rope.inv_freq()
    # A module may pair features otherwise than its file, which transformers then permutes.
    for theirs in (cos[:, : cos.shape[-1] // 2], cos[:, ::2]):
        apart = (angles.cos()[None] - theirs[:, None].float()).abs().amax(-1)
        if float(apart.diagonal().max()) < 1e-6:
            return positions
        nearest = apart.min(1)
        if float(nearest.values.max()) < 1e-6:
            return positions[:, :, nearest.indices].contiguous()
    raise ValueError("the module's cosines are those of no position")


def steps(spec: AttentionSpec, calls: list[Call]) -> Iterator[tuple[Call, dict[str, Tensor], bool]]:
    """Every call with its inputs, and whether it goes on from the call before."""
    for call in calls:
        inputs = inputs_of(call, spec)
        for part in segments(call):
            cut = {
                name: x[..., part] if name == "position_ids" else x[:, part]
                for name, x in inputs.items()
            }
            yield call, cut, call.kind == "decode"


def expected(call: Call, exact: bool, done: int, size: int) -> tuple[Tensor, Tensor]:
    """The module's output for the next `size` tokens, and which of them count: not those of padded
    slots, which see nothing of their own."""
    whole = _batched(call.output64 if exact else call.output)
    real = torch.ones(whole.shape[:2], dtype=torch.bool)
    slots = padding(call)
    if slots is not None and pieces(call) is None:
        real = slots.expand(whole.shape[0], -1)[:, -whole.shape[1] :]
    return whole[:, done : done + size], real[:, done : done + size]


def tables(capture: Capture, calls: list[Call]) -> list[tuple[Tensor, Tensor]]:
    """cos and sin (B, S, R / 2) of each call where transformers does not take them from torch's
    float32 cos and sin: from complex numbers, or a table that is made in the model's dtype."""
    found = []
    stored = {**capture.weights, **capture.buffers}.get("embed_positions")
    for call in calls:
        table = call.position_embeddings
        sinusoidal = call.arguments.get("sinusoidal_pos")
        if isinstance(sinusoidal, Tensor):
            sin, cos = sinusoidal.chunk(2, dim=-1)
            found.append((cos, sin))
        elif isinstance(table, Tensor) and table.is_complex():
            found.append((table.real, table.imag))
        elif stored is not None and call.position_ids is not None:
            sin, cos = stored[call.position_ids].chunk(2, dim=-1)
            found.append((cos, sin))
    return found

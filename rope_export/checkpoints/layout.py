"""Where a checkpoint keeps the tensors of a layer: their names, and which rows of fused ones."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from rope_export.spec import AttentionSpec

Take = Callable[[Tensor, AttentionSpec], Tensor]
Fused = Mapping[str, tuple[str, Take]]
"""Projection to the fused module that holds it, and how its rows are taken out."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One tensor of the layer: the full names of what holds it, stacked where they are several, and
    how to take it out."""

    names: tuple[str, ...]
    take: Take

    @property
    def name(self) -> str:
        """The first of the names."""
        return self.names[0]

    def out_of(self, read: Callable[[str], Tensor], spec: AttentionSpec) -> Tensor:
        """The tensor of the layer. read: reads one that holds it, by its name."""
        parts = [read(name) for name in self.names]
        return self.take(parts[0] if len(parts) == 1 else torch.stack(parts), spec)


def whole(tensor: Tensor, spec: AttentionSpec) -> Tensor:
    """Takes the stored tensor as it is."""
    return tensor


COMMON_IGNORED = ("rotary_emb.inv_freq", "masked_bias", ".bias_mask")
"""Buffers in older files that transformers makes anew."""


@dataclass(frozen=True, kw_only=True)
class TensorLayout:
    """How the checkpoints of a family name the tensors of a layer.

    layers: path of a layer's attention, with {layer}. own: what of its names belongs to the module
    that attends, where the output projection is another's. modules: a module's name in the
    spec to its name in the checkpoint, where they differ, with {head} for one module a head.
    tensors: single tensors that go by another name, and how they are taken. fused: projections that
    lie together in one module. takes: modules whose tensors need a change, such as another shape.
    ignored: tensors that have no part in the layer's output. rotation: how the name of a tensor
    ends from which the model takes its rotation, instead of from the config. others: layouts that
    the family's files have beside this one, such as those of a model saved without its head.
    """

    layers: str = "layers.{layer}.self_attn."
    own: str = ""
    modules: Mapping[str, str] = field(default_factory=dict)
    tensors: Mapping[str, tuple[str, Take]] = field(default_factory=dict)
    fused: Fused = field(default_factory=dict)
    takes: Mapping[str, Take] = field(default_factory=dict)
    ignored: tuple[str, ...] = COMMON_IGNORED

    rotation: str | None = None
    others: tuple["TensorLayout", ...] = ()

    def among(self, names: Iterable[str], layer: int, spec: AttentionSpec) -> "TensorLayout":
        """The layout that a file's names follow, of this one and the others; this one if none."""
        all_names = tuple(names)
        for layout in (self, *self.others):
            suffix = layout.path(layer) + next(iter(layout.pieces(spec).values())).name
            if any(name == suffix or name.endswith("." + suffix) for name in all_names):
                return layout
        return self

    def path(self, layer: int) -> str:
        """Where the layer's attention is; blocks of two attentions have {block} and {side}."""
        return self.layers.format(layer=layer, block=layer // 2, side=layer % 2)

    @property
    def stack(self) -> str:
        """What all layers' paths begin with, up to the layer's number."""
        return self.layers.partition("{")[0]

    def block(self, layer: int) -> str:
        """Where the whole layer is, of which the attention is a part."""
        number = self.layers.index("}")
        return replace(self, layers=self.layers[: number + 1] + ".").path(layer)

    def pieces(self, spec: AttentionSpec) -> dict[str, Piece]:
        """Each tensor of the layer, by its name in the spec.

        A piece has the names in the checkpoint, relative to the layer.
        """
        pieces = {}
        for name in spec.weight_shapes:
            module, dot, kind = name.partition(".")
            if name in self.tensors:
                stored_name, take = self.tensors[name]
                pieces[name] = Piece(names=(stored_name,), take=take)
                continue
            if module in self.fused:
                stored_module, take = self.fused[module]
            else:
                stored_module = self.modules.get(module, module)
                take = self.takes.get(module, whole)
            stored_name = stored_module + dot + kind
            heads = spec.norm_sizes[module][0] if "{head}" in stored_name else 1
            names = tuple(stored_name.replace("{head}", str(at)) for at in range(heads))
            pieces[name] = Piece(names=names, take=take)
        return pieces


def taken(
    layout: TensorLayout, spec: AttentionSpec, tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The spec's tensors from a layer's, which are named relative to the layer."""
    pieces = layout.pieces(spec)
    return {name: piece.out_of(tensors.__getitem__, spec) for name, piece in pieces.items()}


def _rows(tensor: Tensor, *sizes: int) -> Tensor:
    return tensor.reshape(*sizes, *tensor.shape[1:])


def _flat(tensor: Tensor, axes: int) -> Tensor:
    return tensor.flatten(0, axes - 1)


def _block(at: int) -> Take:
    def take(tensor: Tensor, spec: AttentionSpec) -> Tensor:
        sizes = (
            spec.heads * spec.head_dim,
            spec.kv_heads * spec.head_dim,
            spec.kv_heads * spec.value_head_dim,
        )
        return tensor.split(sizes)[at]

    return take


def _of_head(at: int, parts: int) -> Take:
    def take(tensor: Tensor, spec: AttentionSpec) -> Tensor:
        return _flat(_rows(tensor, -1, parts, spec.head_dim)[:, at], 2)

    return take


def _of_group(first: int, last: int | None) -> Take:
    def take(tensor: Tensor, spec: AttentionSpec) -> Tensor:
        group = spec.heads // spec.kv_heads + 2
        return _flat(_rows(tensor, spec.kv_heads, group, spec.head_dim)[:, first:last], 3)

    return take


def blocks(module: str) -> Fused:
    """A fused module of all queries, then all keys, then all values: phi3, dbrx, many encoders."""
    return {f"{name}_proj": (module, _block(at)) for at, name in enumerate("qkv")}


def _chunk(at: int, parts: int) -> Take:
    def take(tensor: Tensor, spec: AttentionSpec) -> Tensor:
        return _rows(tensor, parts, -1)[at]

    return take


def equal_blocks(module: str, *projections: str) -> Fused:
    """A fused module of blocks of as many rows each, in the order of the projections: hrm_text."""
    count = len(projections)
    return {name: (module, _chunk(at, count)) for at, name in enumerate(projections)}


def multihead(module: str = "in_proj") -> dict[str, tuple[str, Take]]:
    """torch.nn.MultiheadAttention's names: in_proj_weight and in_proj_bias."""
    return {
        f"{name}_proj.{kind}": (f"{module}_{kind}", _block(at))
        for at, name in enumerate("qkv")
        for kind in ("weight", "bias")
    }


def head_by_head(module: str) -> Fused:
    """A fused module of one head's query, key and value, then the next's: gpt_neox, persimmon."""
    return {f"{name}_proj": (module, _of_head(at, 3)) for at, name in enumerate("qkv")}


def group_by_group(module: str) -> Fused:
    """A fused module of the queries of a group, its key, its value, group by group: falcon."""
    parts = {"q_proj": (0, -2), "k_proj": (-2, -1), "v_proj": (-1, None)}
    return {name: (module, _of_group(*part)) for name, part in parts.items()}


def gated_queries(module: str) -> Fused:
    """A fused module of a head's query, then its gate: qwen3_next."""
    return {"q_proj": (module, _of_head(0, 2)), "gate_proj": (module, _of_head(1, 2))}

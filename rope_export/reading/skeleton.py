"""transformers' own model for a config, of which only one layer's attention is real.

The model is built on meta by the class that the config names, as from_pretrained builds it. What
lies before this attention in the model's forward is small (position embeddings, norms) and made
real; the other layers of its stack hand their input on; whatever is large stays on meta.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rope_export.checkpoints.config import Read
from rope_export.checkpoints.tensors import layer_tensors
from rope_export.reading.models import Unread, built, reason
from rope_export.spec import AttentionSpec

SMALL = 2**24
"""Elements of a module outside of the attention that is made real: norms, not embeddings."""
TABLE = 2**20
"""Elements of a parameter that is initialised: tables of sines, not embeddings."""
ATTENTION = re.compile("att|mixer|mha|mla", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Skeleton:
    """A model on meta and where this layer's attention is in it.

    module: the attention, at `path`. output: path of the output projection where that is another
    module's, as in BERT's kin. names: of our tensors in the checkpoint. mapping: how transformers
    renames and converts a checkpoint's tensors. state: the model's, on meta.
    """

    model: Any
    path: str
    output: str | None
    names: Mapping[str, str]
    mapping: list[Any]
    state: dict[str, Tensor]
    dtype: torch.dtype

    @property
    def module(self) -> nn.Module:
        return self.model.get_submodule(self.path)

    @property
    def parts(self) -> tuple[str, ...]:
        """Paths of what the layer's tensors belong to."""
        return (self.path,) if self.output is None else (self.path, self.output)

    def holds(self, name: str) -> bool:
        """Whether a parameter's name in the model is one of the layer's."""
        return any(name.startswith(f"{part}.") for part in self.parts)

    def is_exact_in(self, dtype: torch.dtype) -> bool:
        """Whether the layer's weights are numbers of this dtype."""
        return all(
            torch.equal(x.to(dtype).to(x.dtype), x)
            for part in self.parts
            for x in self.model.get_submodule(part).parameters()
        )

    def is_ours(self, name: str) -> bool:
        """Whether a checkpoint's tensor of this name ends up in the layer."""
        return self.holds(renamed(self.model, self.mapping, name, self.state))


def saved_names(model: Any, layer: int) -> dict[str, str]:
    """Names under which save_pretrained writes the tensors of layers with this number, in one
    file; experts left out, which are many and none of ours."""
    state = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if "expert" not in name and _has_number(name, layer)
    }
    try:
        from transformers.core_model_loading import revert_weight_conversion

        state = revert_weight_conversion(model, state)
    except Exception as error:
        raise Unread(f"transformers cannot name what it saves ({reason(error)})") from error
    return dict.fromkeys(state, "model.safetensors")


def _has_number(name: str, layer: int) -> bool:
    """Whether some part of a dotted name is the layer's number, or that of its block of two."""
    return not {str(layer), str(layer // 2)}.isdisjoint(name.split("."))


def located(
    model: Any,
    names: Mapping[str, str],
    layer: int,
    own: bool,
    dtype: torch.dtype,
    mapping: list[Any] | None = None,
) -> Skeleton:
    """Where tensors called `names` in a checkpoint, by our names for them, end up in the model.

    own: whether the output projection is in another module than the one that attends. mapping: how
    the names become the model's; without, as from_pretrained has it for safetensors.
    Raises: Unread if transformers has no such parameters, or they are another layer's.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping

    mapping = get_model_conversion_mapping(model) if mapping is None else mapping
    state = model.state_dict()
    targets = {ours: renamed(model, mapping, name, state) for ours, name in names.items()}
    targets = {ours: target for ours, target in targets.items() if target in state}
    inside = {k: v for k, v in targets.items() if not (own and k.startswith("o_proj."))}
    if not inside:
        raise Unread(f"{type(model).__name__} has no parameters for {next(iter(names.values()))!r}")
    path = _attention_path(model, list(inside.values()))
    if not _has_number(path, layer):
        raise Unread(f"{path} of {type(model).__name__} is not layer {layer}")
    output = targets.get("o_proj.weight", "").rpartition(".")[0]
    outside = bool(output) and not output.startswith(f"{path}.")
    return Skeleton(
        model=model,
        path=path,
        output=output if outside else None,
        names=dict(names),
        mapping=mapping,
        state=state,
        dtype=dtype,
    )


def renamed(model: Any, mapping: list[Any], name: str, state: dict[str, Tensor]) -> str:
    """What a checkpoint's name becomes in the model, by transformers' own rules."""
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    renamings = [x for x in mapping if isinstance(x, WeightRenaming)]
    converters = [x for x in mapping if isinstance(x, WeightConverter)]
    target, _ = rename_source_key(name, renamings, converters, model.base_model_prefix, state)
    if target not in state and name in state:  # as convert_and_load_state_dict_in_model does
        return name
    return target


def _attention_path(model: nn.Module, names: list[str]) -> str:
    """The module that holds all these parameters and attends."""
    shared = names[0].split(".")[:-1]
    for name in names[1:]:
        parts = name.split(".")
        while parts[: len(shared)] != shared:
            shared.pop()
    while shared:
        module = model.get_submodule(".".join(shared))
        if ATTENTION.search(type(module).__name__) and not isinstance(module, nn.ModuleList):
            return ".".join(shared)
        shared.pop()
    raise Unread(f"{type(model).__name__} has no attention module that holds {names[0]!r}")


class HandsOn(nn.Module):
    """In place of another layer: its output is its input."""

    def __init__(self, layer: nn.Module, as_tuple: bool) -> None:
        super().__init__()
        self.as_tuple: bool = as_tuple
        for name, value in vars(layer).items():  # what models ask a layer for
            if isinstance(value, str | int | float | bool | None) and not hasattr(self, name):
                setattr(self, name, value)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else next(iter(kwargs.values()))
        return (hidden,) if self.as_tuple else hidden


def stack_of(model: nn.Module, path: str) -> tuple[nn.ModuleList, int] | None:
    """The list of layers that holds the module at `path`, and at which index."""
    parts = path.split(".")
    for end in range(len(parts) - 1, 0, -1):
        holder = model.get_submodule(".".join(parts[:end]))
        if isinstance(holder, nn.ModuleList) and parts[end].isdigit():
            return holder, int(parts[end])
    return None


def hollow(skeleton: Skeleton, as_tuple: bool) -> None:
    """Takes the other layers of this attention's stack out of the model."""
    stack = stack_of(skeleton.model, skeleton.path)
    if stack is None:
        return
    layers, index = stack
    for at, layer in enumerate(layers):
        if at != index and not isinstance(layer, HandsOn):
            layers[at] = HandsOn(layer, as_tuple)
        elif isinstance(layer, HandsOn):
            layer.as_tuple = as_tuple


@torch.no_grad()
def made_real(skeleton: Skeleton) -> None:
    """Small modules and buffers that are still on meta, by the model's own initialisation, as
    from_pretrained makes them: among them are tables of sines."""
    from transformers import PreTrainedModel

    owners: dict[str, Any] = {}
    for name, module in skeleton.model.named_modules():
        if isinstance(module, PreTrainedModel):
            owners[name] = module
    for name, module in list(skeleton.model.named_modules()):
        if any(name == part or name.startswith(f"{part}.") for part in skeleton.parts):
            parameters: dict[str, Any] = {}
        else:
            parameters = {k: v for k, v in module._parameters.items() if _is_small(v)}
        buffers = {k: v for k, v in module._buffers.items() if _is_small(v)}
        for key, value in parameters.items():
            module._parameters[key] = nn.Parameter(
                torch.ones(value.shape, dtype=value.dtype), requires_grad=False
            )
        for key, value in buffers.items():
            module._buffers[key] = torch.zeros(value.shape, dtype=value.dtype)
        if buffers or any(x.numel() <= TABLE for x in parameters.values()):
            owner = max((x for x in owners if _within(name, x)), key=len)
            with torch.random.fork_rng(devices=[]):
                owners[owner]._init_weights(module)


def _within(name: str, outer: str) -> bool:
    return outer == "" or name == outer or name.startswith(f"{outer}.")


def _is_small(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.device.type == "meta" and tensor.numel() <= SMALL


def skeleton_of(
    config: Any,
    read: Read,
    spec: AttentionSpec,
    layer: int,
    *,
    names: Mapping[str, str] | None = None,
    mapping: Callable[[Any], list[Any]] | None = None,
    dtype: torch.dtype = torch.float64,
) -> Skeleton:
    """The model with this layer's attention found in it, its other layers hollow.

    names: of our tensors in the checkpoint; without, as transformers saves the model.
    Raises: Unread for what transformers cannot do; CheckpointError if the names it saves are not
    those that our reading expects.
    """
    model = built(config, dtype)
    layout = read.layout(layer)
    if names is None:
        pieces = layer_tensors(saved_names(model, layer), layer, spec, layout, read.part)
        names = {ours: piece.name for ours, piece in pieces.items()}
    renaming = None if mapping is None else mapping(model)
    skeleton = located(model, names, layer, bool(layout.own), dtype, renaming)
    hollow(skeleton, as_tuple=False)
    made_real(skeleton)
    return skeleton


def is_rotary(module: Any) -> bool:
    """Whether a module makes cos and sin."""
    name = type(module).__name__
    return "Rotary" in name or "Rope" in name or "RoPE" in name


def width(skeleton: Skeleton) -> int:
    """Features of the embeddings that the stack of the attention takes."""
    return int(inner_config(skeleton).hidden_size)


def inner_config(skeleton: Skeleton) -> Any:
    """The config of the stack that the attention is in."""
    config: Any = getattr(skeleton.module, "config", None)
    return config if hasattr(config, "hidden_size") else skeleton.model.config.get_text_config()

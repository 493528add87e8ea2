"""transformers' own causal LM for a config, without its weights, and where its layers are."""

import inspect
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rope_export.errors import SpecError
from rope_export.reading.models import Unread, built, model_class

ATTENTION = re.compile("att|mixer|mla", re.IGNORECASE)
"""What the class of a module that attends is called."""

STATES = {"cache", "past_key_values", "past_key_value", "cache_params", "layer_past"}
"""What a module's forward calls the model's cache."""

MASKS = "rope_export"
"""The name under which transformers finds an attention without masks: the layers make their own."""


@dataclass(frozen=True, kw_only=True)
class CausalLM:
    """A causal LM whose parameters have shapes and no values yet, so that none is in memory.

    model: transformers' module. vocabulary: width of its logits. positions: how many it was made
    for, if its config says so. layers: its decoder layers. attentions: the path within each layer
    of the module that attends.
    """

    model: Any
    vocabulary: int
    positions: int | None
    layers: nn.ModuleList
    layers_path: str
    attentions: tuple[str, ...]


def causal_lm(config: Any, dtype: torch.dtype) -> CausalLM:
    """The model of a transformers config object.

    Raises: SpecError naming what this model has that a decoder of attention layers has not, or why
        transformers cannot build it.
    """
    text = config.get_text_config(decoder=True)
    try:
        model = built(_causal(config, text), dtype)
    except Unread as error:
        raise SpecError(f"{error}; whole decoders are made of its models.") from error
    model.set_experts_implementation("batched_mm")  # one that can be traced
    _without_masks(model)
    _made_real(model)
    model.tie_weights()
    path, layers = _stack(model, text)
    attentions = tuple(_attention(layer, f"{path}.{at}") for at, layer in enumerate(layers))
    for at, (layer, attention) in enumerate(zip(layers, attentions, strict=True)):
        _refuse_states(layer, f"{path}.{at}", attention)
    return CausalLM(
        model=model,
        vocabulary=text.vocab_size,
        positions=_positions(text),
        layers=layers,
        layers_path=path,
        attentions=attentions,
    )


def _positions(text: Any) -> int | None:
    """The number of positions that the model was made for; none where it goes on with any."""
    positions = getattr(text, "max_position_embeddings", None)
    rope = getattr(text, "rope_parameters", None) or {}
    dynamic = isinstance(rope, dict) and rope.get("rope_type") == "dynamic"
    return positions if isinstance(positions, int) and not dynamic else None


def _causal(config: Any, text: Any) -> Any:
    """The config that the model is built from: the source's own where that is a causal LM, of a
    multimodal one its text decoder's, and its own again where that is no model by itself."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    if getattr(_own_class(config), "__name__", "").endswith("ForCausalLM"):
        return config
    for candidate in (config, text):
        if type(candidate) in MODEL_FOR_CAUSAL_LM_MAPPING:
            chosen: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(candidate)]
            chosen = chosen[0] if isinstance(chosen, tuple) else chosen
            candidate.architectures = [chosen.__name__]
            if hasattr(config, "tie_word_embeddings"):  # the whole model's, which is what counts
                candidate.tie_word_embeddings = config.tie_word_embeddings
            return candidate
    if "ForConditionalGeneration" in getattr(_own_class(config), "__name__", ""):
        return config
    raise SpecError(
        f"model_type={config.model_type!r}: transformers has no causal LM for it, so it is no "
        f"decoder; export one of its layers with `layer`."
    )


def _own_class(config: Any) -> Any:
    """The class that a config names, if transformers has it."""
    try:
        return model_class(config)
    except Unread:
        return None


def _without_masks(model: Any) -> None:
    """transformers makes no masks for this model."""
    from transformers import AttentionMaskInterface

    AttentionMaskInterface.register(MASKS, _no_mask)
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None:
            config._attn_implementation = MASKS


def _no_mask(*_: Any, **__: Any) -> None:
    return None


@torch.no_grad()
def _made_real(model: Any) -> None:
    """Parameters on the CPU, of memory that nothing touches; buffers that are computed and not
    loaded by the model's own initialisation."""
    saved = set(model.state_dict())
    for name, module in model.named_modules():
        names = [f"{name}.{key}" if name else key for key in module._buffers]
        computed = [key for key, x in zip(module._buffers, names, strict=True) if x not in saved]
        for key in computed:
            value = module._buffers[key]
            if value is not None and value.device.type == "meta":
                module._buffers[key] = torch.zeros(value.shape, dtype=value.dtype)
        if computed:
            model._init_weights(module)  # whose parameters are on meta: only buffers are computed
    empty: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for key, parameter in module._parameters.items():
            if parameter is None or parameter.device.type != "meta":
                continue
            if id(parameter) not in empty:
                values = torch.empty(parameter.shape, dtype=parameter.dtype)
                empty[id(parameter)] = nn.Parameter(values, requires_grad=False)
            module._parameters[key] = empty[id(parameter)]
        for key, buffer in module._buffers.items():
            if buffer is not None and buffer.device.type == "meta":
                module._buffers[key] = torch.empty(buffer.shape, dtype=buffer.dtype)


def _stack(model: Any, text: Any) -> tuple[str, nn.ModuleList]:
    """The path and the list of the model's decoder layers."""
    decoder = model.get_decoder() or model
    inside = set(decoder.modules())
    count = getattr(text, "num_hidden_layers", None)
    for name, module in model.named_modules():
        if not (module in inside and isinstance(module, nn.ModuleList) and len(module) == count):
            continue
        if any(ATTENTION.search(type(x).__name__) for x in module[0].modules()):
            return name, module
    raise SpecError(
        f"{type(model).__name__} has no list of {count} decoder layers that attend, so it is no "
        f"decoder that is exported whole; export one of its layers with `layer`."
    )


def _attention(layer: nn.Module, path: str) -> str:
    """The path within a layer of the outermost module that attends."""
    modules = {name: x for name, x in layer.named_modules() if name and not _is_norm(x)}
    for kind in (re.compile("Attention"), ATTENTION):
        for name, module in modules.items():
            if kind.search(type(module).__name__):
                return name
    raise SpecError(f"{path} is a {type(layer).__name__}, in which nothing attends.")


def _refuse_states(layer: nn.Module, path: str, attention: str) -> None:
    """Refuses a layer in which more than its one attention takes the model's cache."""
    for name, module in layer.named_modules():
        if not name or name == attention or attention.startswith(f"{name}."):
            continue
        inside = name.startswith(f"{attention}.")
        if STATES & inspect.signature(module.forward).parameters.keys() and not inside:
            raise SpecError(
                f"{path}.{name} is a {type(module).__name__}, which keeps a state of its own "
                f"beside {path}.{attention}; decoders whose layers keep no state but the keys and "
                f"values of one attention are exported whole, others layer by layer (`layer`)."
            )


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


def set_submodule(root: nn.Module, path: str, module: nn.Module) -> None:
    """Puts a module in place of the one at `path`."""
    parent, _, name = path.rpartition(".")
    holder = root.get_submodule(parent) if parent else root
    if isinstance(holder, nn.ModuleList | nn.Sequential):
        holder[int(name)] = module
    else:
        setattr(holder, name, module)

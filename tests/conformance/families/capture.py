"""What goes into and comes out of every rotary attention module of transformers' own models.

A tiny model is saved by transformers, loaded by transformers from the folder, and run in eager
attention on the CPU in float64: a prefill and two decode steps with the model's own cache, a
prefill with left padding, or a single forward for encoders and towers.
Every run is done twice. The second one keeps each module at float64 where its source asks for
float32 (softmax, norms, rotation), but hands the first run's output on to the layers above, so
that both outputs of a call belong to the same input.

`python -m scripts.show_captures llama gemma3` prints what is captured.
"""

import copy
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from tests.conformance.families.building import TinyModel
from tests.conformance.families.inputs import Start, paddings, starts
from tests.conformance.families.recorder import _first, _Recorder, _Seen
from tests.conformance.families.rotary_classes import attention_modules, rotates
from tests.conformance.families.saved import load, part_of, save


@dataclass(frozen=True)
class Call:
    """One forward of an attention module: what it was given, and what it returned."""

    kind: str
    """prefill, decode, padded (left padding in row 1) or encode."""
    hidden_states: Tensor
    arguments: Mapping[str, Any]
    """Every argument by name as bound to the forward, tensors copied before the call; None for a
    cache, whose length is `past`."""
    given: tuple[str, ...]
    """Names of the arguments that are not None."""
    position_ids: Tensor | None
    """From the module's arguments, or else what the last rotary embedding was called with."""
    position_embeddings: Any
    """Cos and sin (or what stands for them) that the module got, or else the last ones made."""
    attention_mask: Tensor | None
    mask_2d: Tensor | None
    past: int
    output: Tensor
    output64: Tensor


@dataclass(frozen=True)
class Capture:
    """One rotary attention module of a tiny model with its weights and its calls."""

    family: str
    variant: str
    model_class: str
    module_class: str
    module_path: str
    layer_idx: int | None
    layer_type: str | None
    config: PreTrainedConfig | None
    """The config that the module was built with; None where it keeps none."""
    top_config: PreTrainedConfig
    folder: Path
    """The folder that the model was saved to and loaded from."""
    part: str | None
    """What `--part` calls the module's config in that folder."""
    weights: Mapping[str, Tensor]
    """transformers' own, as loaded."""
    buffers: Mapping[str, Tensor]
    """Buffers that the state dict leaves out, such as inverse frequencies."""
    attributes: Mapping[str, Any]
    """Plain attributes of the module: numbers, strings, flags (head_dim, scaling, is_causal...)."""
    inner_classes: tuple[str, ...]
    """Modules of the family inside this one that rotate as well, such as sparse indexers."""
    calls: tuple[Call, ...]


def _layer_idx(module: nn.Module) -> int | None:
    for name in ("layer_idx", "layer_number", "layer_id", "idx"):
        value = getattr(module, name, None)
        if type(value) is int:
            return value
    return None


HIDDEN = ("hidden_states", "hidden_state", "x", "inputs", "query", "states", "hidden")


def _hidden(arguments: Mapping[str, Any]) -> Tensor:
    for name in HIDDEN:
        if isinstance(arguments.get(name), Tensor):
            return arguments[name]
    found = [x for x in arguments.values() if isinstance(x, Tensor) and x.is_floating_point()]
    if not found:
        raise ValueError(f"no hidden states among {sorted(arguments)}")
    return found[0]


EMBEDDINGS = ("position_embeddings", "rotary_pos_emb", "freqs_cis", "rope", "position_embedding")


def _call(seen: _Seen) -> Call:
    given = seen.arguments
    if seen.output64 is None:
        raise RuntimeError(f"the second run never came to {seen.path}")
    pair = (given.get("cos"), given.get("sin")) if "cos" in given else None
    embeddings = next((given[x] for x in EMBEDDINGS if given.get(x) is not None), pair)
    positions = given.get("position_ids")
    outputs = [_first(seen.output), seen.output64]
    if seen.projection is not None:
        with torch.no_grad():
            outputs = [seen.projection(x) for x in outputs]
    return Call(
        kind=seen.kind,
        hidden_states=_hidden(given),
        arguments=given,
        given=tuple(x for x, y in given.items() if y is not None),
        position_ids=seen.rotary[0] if positions is None else positions,
        position_embeddings=seen.rotary[1] if embeddings is None else embeddings,
        attention_mask=_mask(given),
        mask_2d=seen.mask_2d,
        past=seen.past,
        output=outputs[0],
        output64=outputs[1],
    )


def _mask(given: Mapping[str, Any]) -> Tensor | None:
    """The additive mask, which a few modules get under another name or beside other masks."""
    masks = [y for x, y in given.items() if "attention_mask" in x or "causal_mask" in x]
    for mask in [*masks]:
        masks += mask.values() if isinstance(mask, dict) else ()
        masks += mask if isinstance(mask, (tuple, list)) else ()
    tensors = [x for x in masks if isinstance(x, Tensor)]
    return next((x for x in tensors if x.dim() == 4), tensors[0] if tensors else None)


def _usable(seen: _Seen) -> bool:
    """Whether a call is self-attention (through the same class, cross attention does not rotate).

    A module that masks in its own way may give NaN for padding tokens; that call shows nothing.
    """
    given = seen.arguments
    if not bool(torch.isfinite(_first(seen.output)).all()):
        return False
    other = (given.get("key_value_states"), given.get("encoder_hidden_states"))
    return given.get("position_embeddings") is not None or all(x is None for x in other)


def captures(tiny: TinyModel, folder: Path, start: Start | None = None) -> list[Capture]:
    """Every rotary attention module of the model with all its calls, in the model's order.

    folder: where the model is saved, and loaded from again. start: how to run the model; without,
    the first guess that it takes.
    """
    save(tiny, folder)
    model = load(tiny.model_class, folder)
    modules = attention_modules(model, tiny.family)
    if not modules:
        raise ValueError(f"{tiny.name} has no rotary attention module")
    recorder = _Recorder(modules)
    with torch.no_grad(), recorder.attached(model):
        _first_that_runs(recorder, model, starts(tiny, model) if start is None else [start])
        if start is None:
            with suppress(NothingRuns):
                _first_that_runs(recorder, model, paddings(tiny, model))
    every = (_capture(tiny, folder, model, path, recorder.seen) for path in modules)
    return [capture for capture in every if capture.calls]


class NothingRuns(RuntimeError):
    """No inputs were found that the model accepts."""


def _first_that_runs(recorder: _Recorder, model: nn.Module, ways: Iterable[Start]) -> None:
    """Runs the model in the first way that it accepts, twice; the first error if in none."""
    problem: Exception | None = None
    for start in ways:
        before = len(recorder.seen)
        state = copy.deepcopy(dict(model.named_buffers()))
        try:
            recorder.twice(model, start)
        except Exception as error:
            del recorder.seen[before:]
            problem = problem or error
            continue
        finally:
            for name, value in model.named_buffers():
                if name in state and state[name].shape == value.shape:
                    value.copy_(state[name])
        if len(recorder.seen) > before:
            return
        problem = problem or ValueError("no rotary attention module was called")
    raise NothingRuns(
        first_line(problem) if problem else "no inputs for this signature"
    ) from problem


def first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".split("\n")[0][:160]


def _capture(
    tiny: TinyModel, folder: Path, model: nn.Module, path: str, seen: list[_Seen]
) -> Capture:
    module = model.get_submodule(path)
    weights = {x: y.detach().clone() for x, y in module.state_dict().items()}
    buffers = {x: y.clone() for x, y in module.named_buffers() if x not in weights}
    config = getattr(module, "config", None)
    layer = _layer_idx(module)
    if layer is None:
        digits = [int(x) for x in path.split(".") if x.isdigit()]
        layer = digits[0] if digits else None
    return Capture(
        family=tiny.family,
        variant=tiny.variant,
        model_class=tiny.model_class.__name__,
        module_class=type(module).__name__,
        module_path=path,
        layer_idx=layer,
        layer_type=_layer_type(module, config or tiny.config, layer),
        config=config if isinstance(config, PreTrainedConfig) else None,
        top_config=tiny.config,
        folder=folder,
        part=part_of(model, path),
        weights=weights,
        buffers=buffers,
        attributes={x: y for x, y in vars(module).items() if isinstance(y, PLAIN) and x[0] != "_"},
        inner_classes=_inner(module, tiny.family),
        calls=tuple(_call(x) for x in seen if x.path == path and _usable(x)),
    )


def _inner(module: nn.Module, family: str) -> tuple[str, ...]:
    prefix = f"transformers.models.{family}."
    kinds: set[Any] = {type(x) for x in module.modules()} - {type(module)}
    found = {x.__name__ for x in kinds if x.__module__.startswith(prefix) and rotates(x)}
    return tuple(sorted(found))


PLAIN = (int, float, str, bool, tuple, type(None))


def _layer_type(module: nn.Module, config: Any, layer: int | None) -> str | None:
    for name in ("layer_type", "attention_type", "attn_type"):
        if isinstance(value := getattr(module, name, None), str):
            return value
    kinds = getattr(config, "layer_types", None) or ()
    return kinds[layer] if layer is not None and layer < len(kinds) else None

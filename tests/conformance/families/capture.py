"""What goes into and comes out of every rotary attention module of transformers' own models.

A tiny model is saved by transformers, loaded by transformers from the folder, and run in eager
attention on the CPU in float64: a prefill and two decode steps with the model's own cache, a
prefill with left padding, or a single forward for encoders and towers.
Every run is done twice. The second one keeps each module at float64 where its source asks for
float32 (softmax, norms, rotation), but hands the first run's output on to the layers above, so
that both outputs of a call belong to the same input.

`python -m tests.conformance.families.capture llama gemma3` prints what is captured, `--all` a
table.
"""

import argparse
import copy
import inspect
import multiprocessing
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from tests.conformance.families.inputs import Start, paddings, starts
from tests.conformance.families.saved import load, part_of, save
from tests.conformance.families.tiny import (
    PROBLEMS,
    TinyModel,
    attention_modules,
    rotary_attention_classes,
    rotary_families,
    rotates,
    tiny_models,
)


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


class KeepFloat64(TorchFunctionMode):
    """Casts of float64 tensors down to float32 do nothing: softmax(dtype=), .float(), .to()."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        first = args[0] if args else kwargs.get("input")
        if isinstance(first, Tensor) and first.dtype is torch.float64:
            name = getattr(func, "__name__", "")
            if func is torch.Tensor.float:
                return first
            if "softmax" in name or func in (torch.Tensor.to, torch.Tensor.type):
                args = tuple(torch.float64 if x is torch.float32 else x for x in args)
                if kwargs.get("dtype") is torch.float32:
                    kwargs["dtype"] = torch.float64
        return func(*args, **kwargs)


@dataclass
class _Seen:
    """A call in the making; the second run adds output64."""

    kind: str
    path: str
    arguments: dict[str, Any]
    rotary: tuple[Any, Any]
    past: int
    mask_2d: Tensor | None
    output: Any = None
    output64: Tensor | None = None
    projection: nn.Module | None = None
    """The linear module that took the output as it was: the output projection, where a module of
    its own holds it, as in BERT's kin."""


@dataclass
class _Recorder:
    """Wraps the forwards of one model's attention modules and notes what passes through."""

    modules: Mapping[str, nn.Module]
    seen: list[_Seen] = field(default_factory=list)
    kind: str = ""
    mask: Tensor | None = None
    past: int = 0
    replay: Iterator[_Seen] | None = None
    rotary: tuple[Any, Any] = (None, None)
    latest: tuple[_Seen, Tensor] | None = None

    def twice(self, model: nn.Module, start: Start) -> None:
        """Runs as the model is, then again at float64 throughout with the first run's outputs."""
        before = len(self.seen)
        start(model, self._mark)
        self.replay = iter(self.seen[before:])
        try:
            start(model, self._mark)
        finally:
            self.replay = None

    def _mark(self, kind: str, mask: Tensor | None, past: int) -> None:
        self.kind, self.mask, self.past = kind, mask, past

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[None]:
        with ExitStack() as stack:
            for path, module in self.modules.items():
                stack.enter_context(_replaced(module, self._wrapped(path, module)))
            for module in model.modules():
                if "otary" in type(module).__name__ or "Rope" in type(module).__name__:
                    handle = module.register_forward_hook(self._note_rotary, with_kwargs=True)
                    stack.callback(handle.remove)
                elif isinstance(module, (nn.Linear, Conv1D)):
                    stack.callback(module.register_forward_pre_hook(self._note_linear).remove)
            yield

    def _note_linear(self, module: Any, args: Any) -> None:
        """Whether the module takes what an attention module has just returned."""
        if self.latest is not None and args:
            seen, output = self.latest
            if args[0].data_ptr() == output.data_ptr() and args[0].shape == output.shape:
                seen.projection, self.latest = module, None

    def _note_rotary(self, module: Any, args: Any, kwargs: Any, output: Any) -> None:
        try:
            bound = inspect.signature(module.forward).bind(*args, **kwargs).arguments
        except TypeError:
            return
        if any(module is y for x in self.modules.values() for y in x.modules()):
            return
        self.rotary = (_copied(bound.get("position_ids")), _copied(output))

    def _wrapped(self, path: str, module: nn.Module) -> Callable[..., Any]:
        forward = module.forward
        signature = inspect.signature(forward)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            args, kwargs = _masked(signature, args, kwargs)
            if self.replay is not None:
                return self._again(path, forward, args, kwargs)
            bound = _bound(signature, args, kwargs)
            cached = any(hasattr(x, "get_seq_length") for x in bound.values())
            call = _Seen(
                kind=self.kind if cached or self.kind == "padded" else "encode",
                path=path,
                arguments={x: _copied(y) for x, y in bound.items()},
                rotary=self.rotary,
                past=self.past if cached else 0,
                mask_2d=self.mask,
            )
            output = forward(*args, **kwargs)
            call.output = _copied(output)
            self.seen.append(call)
            self.latest = (call, _first(output))
            return output

        return wrapped

    def _again(self, path: str, forward: Any, args: Any, kwargs: Any) -> Any:
        assert self.replay is not None
        call = next(self.replay)
        if call.path != path:
            raise RuntimeError(f"second run came to {path}, the first to {call.path}")
        with KeepFloat64():
            output = forward(*args, **kwargs)
        call.output64 = _first(_copied(output))
        return _merged(call.output, output)


def _merged(first: Any, second: Any) -> Any:
    """The first run's tensors; what is no tensor (a cache) from the second run."""
    if isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)):
        return type(second)(_merged(x, y) for x, y in zip(first, second, strict=True))
    return _copied(first) if isinstance(first, Tensor) else second


@contextmanager
def _replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    had = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if had is None:
            del module.__dict__["forward"]
        else:
            module.forward = had


def _masked(signature: inspect.Signature, args: Any, kwargs: Any) -> tuple[Any, dict[str, Any]]:
    """Additive masks no lower than float32 goes.

    transformers fills them with the lowest float64, which the float32 softmax takes for minus
    infinity: a padding token, which may see nothing, would come out as NaN and spread from there.
    """
    bound = signature.bind(*args, **kwargs)
    kinds = {x: y.kind for x, y in signature.parameters.items()}
    for name, value in bound.arguments.items():
        if kinds[name] is inspect.Parameter.VAR_KEYWORD:
            bound.arguments[name] = {x: _limited(x, y) for x, y in value.items()}
        else:
            bound.arguments[name] = _limited(name, value)
    return bound.args, bound.kwargs


def _limited(name: str, value: Any) -> Any:
    if "mask" in name and isinstance(value, dict):
        return {x: _limited(name, y) for x, y in value.items()}
    if "mask" in name and type(value) in (tuple, list):
        return type(value)(_limited(name, x) for x in value)
    if "mask" in name and isinstance(value, Tensor) and value.dtype is torch.float64:
        return value.clamp(min=torch.finfo(torch.float32).min)
    return value


def _bound(signature: inspect.Signature, args: Any, kwargs: Any) -> dict[str, Any]:
    bound = signature.bind(*args, **kwargs)
    flat = dict(bound.arguments)
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            flat |= flat.pop(name, {})
    return flat


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return type(value)(_copied(x) for x in value)
    if isinstance(value, dict) and type(value) is dict:
        return {x: _copied(y) for x, y in value.items()}
    if isinstance(value, (int, float, bool, str, type(None), torch.dtype)):
        return value
    return None


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, (list, tuple)) else value


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

    A module that masks in its own way may give NaN for padding tokens; that call says nothing.
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
    raise NothingRuns(_reason(problem) if problem else "no inputs for this signature") from problem


def _reason(error: BaseException) -> str:
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


def family_captures(family: str) -> tuple[list[Capture], list[str]]:
    """Captures of every tiny model of the family, and why the others have none."""
    found: list[Capture] = []
    problems: list[str] = []
    for tiny in tiny_models(family):
        with tempfile.TemporaryDirectory() as folder:
            try:
                found += captures(tiny, Path(folder))
            except Exception as error:
                problems.append(f"{tiny.name}: {_reason(error)}")
    if not rotary_attention_classes(family):
        problems.append("no attention module of its file applies the rotation that it defines")
    return found, [*problems, *PROBLEMS.get(family, [])]


def _describe(capture: Capture) -> str:
    kinds = " ".join(f"{x.kind}{tuple(x.output.shape)}" for x in capture.calls)
    call = capture.calls[0]
    apart = max(float((x.output - x.output64).abs().max()) for x in capture.calls)
    head = f"{capture.model_class} [{capture.variant}] {capture.module_class} {capture.module_path}"
    return (
        f"{head} layer={capture.layer_idx} {capture.layer_type or ''}\n"
        f"    {kinds}\n    given {', '.join(call.given)}; float32 inside moves {apart:.1e}\n"
        f"    weights { {x: tuple(y.shape) for x, y in capture.weights.items()} }"
    )


@dataclass(frozen=True)
class Row:
    """One line of the table of all families."""

    family: str
    captures: int
    classes: tuple[str, ...]
    missing: tuple[str, ...]
    variants: int
    kinds: tuple[str, ...]
    worst: float
    seconds: float
    problems: tuple[str, ...]


def _row(family: str, limit: int) -> Row:
    """The family's captures in short, made in a worker process under a time limit."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    started = time.perf_counter()

    def stop(*_: object) -> None:
        raise TimeoutError(f"not done after {limit} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(limit)
    found: list[Capture] = []
    try:
        found, problems = family_captures(family)
        wanted = rotary_attention_classes(family)
    except BaseException as error:
        problems, wanted = [_reason(error)], set()
    finally:
        signal.alarm(0)
    classes = {x.module_class for x in found}
    inner = {x for y in found for x in y.inner_classes}
    calls = [x for y in found for x in y.calls]
    return Row(
        family=family,
        captures=len(found),
        classes=tuple(sorted(classes)),
        missing=tuple(sorted(wanted - classes - inner)),
        variants=len({x.variant for x in found}),
        kinds=tuple(sorted({x.kind for x in calls})),
        worst=max((float((x.output - x.output64).abs().max()) for x in calls), default=0.0),
        seconds=time.perf_counter() - started,
        problems=tuple(problems),
    )


def table(families: Iterable[str], limit: int = 60, workers: int = 2) -> Iterator[Row]:
    """A row for every family, in the order in which they are asked for."""
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(workers, context) as pool:
        yield from pool.map(_row, families, repeat(limit))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*")
    parser.add_argument("--all", action="store_true", help="a table of all families")
    parser.add_argument("--limit", type=int, default=60, help="seconds for each family")
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    if options.all:
        return _print_table(options.families or rotary_families(), options.limit)
    torch.set_num_threads(1)
    for family in options.families:
        found, problems = family_captures(family)
        print(f"== {family}: {len(found)} captures", *map(_describe, found), sep="\n")
        print(*(f"    not: {x}" for x in problems), sep="\n")
    return 0


def _print_table(families: Iterable[str], limit: int) -> int:
    done = missing = 0
    for row in table(families, limit):
        done += row.captures > 0
        missing += row.captures == 0
        print(
            f"{row.family:28} {row.captures:4} captures {row.variants:2} variants "
            f"{row.seconds:5.1f} s {row.worst:.0e} {','.join(row.kinds)} "
            f"{','.join(row.classes)}" + (f" MISSING {','.join(row.missing)}" * bool(row.missing)),
            *(f"    not: {x[:200]}" for x in row.problems),
            sep="\n",
            flush=True,
        )
    print(f"{done} families capture, {missing} do not")
    return 0


if __name__ == "__main__":
    sys.exit(main())

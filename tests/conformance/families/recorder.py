"""What passes through the attention modules of one model, noted in two runs."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers.pytorch_utils import Conv1D

from tests.conformance.families.inputs import Start


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

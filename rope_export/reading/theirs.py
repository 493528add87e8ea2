"""transformers' attention run on our calls: its own cos and sin, masks and cache, our inputs."""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rope_export.reading.calls import Calls
from rope_export.reading.captures import Arguments, arguments
from rope_export.reading.models import Unread, reason
from rope_export.reading.skeleton import Skeleton, is_rotary, width
from rope_export.spec import AttentionSpec

LOWEST = torch.finfo(torch.float32).min


@dataclass
class Theirs:
    """The skeleton's attention, whose weights are in `dtype` already."""

    skeleton: Skeleton
    spec: AttentionSpec
    dtype: torch.dtype

    def run(self, calls: Calls) -> Iterator[tuple[str, Tensor]]:
        """Each call's name and output, (B, S, width).

        Raises: Unread for what transformers' own code raises.
        """
        cache = None
        hidden = calls.hidden(self.spec.hidden_size).to(self.dtype)
        with kept(self.skeleton):
            if calls.past:
                cache = self._drawn_cache(calls)
            for name, part in calls.parts():
                if cache is not None:
                    self._report(cache, calls.batch, part.start)
                arguments = self._arguments(calls, part, cache, len(calls.steps) > 1)
                new = slice(part.start - calls.past, part.stop - calls.past)
                arguments.put(arguments.hidden, hidden[:, new])
                yield name, self._output(arguments)
                cache = arguments.value(arguments.cache) if arguments.cache else None
                if cache is None and part.stop < calls.total:
                    raise Unread("the model gives its attention no cache")

    def _output(self, arguments: Arguments) -> Tensor:
        _limit_masks(arguments.bound)
        try:
            output = self.skeleton.module(*arguments.bound.args, **arguments.bound.kwargs)
            output = output[0] if isinstance(output, tuple | list) else output
            if self.skeleton.output is not None:
                output = self.skeleton.model.get_submodule(self.skeleton.output)(output)
        except Exception as error:
            raise Unread(f"the attention does not run alone ({reason(error)})") from error
        return output

    def _arguments(self, calls: Calls, part: slice, cache: Any, use_cache: bool) -> Arguments:
        count = part.stop - part.start
        embeds = torch.zeros(calls.batch, count, width(self.skeleton), dtype=self.dtype)
        axes = 1 if self.spec.rope is None else self.spec.rope.axes
        mask = calls.mask()
        return arguments(
            self.skeleton,
            embeds,
            positions=None if calls.counted else calls.positions(axes)[..., part],
            mask=None if mask is None else mask[:, : part.stop],
            cache=cache,
            use_cache=use_cache or cache is not None,
        )

    def _drawn_cache(self, calls: Calls) -> Any:
        """The model's own kind of cache with the drawn entries in the attention's layer."""
        arguments = self._arguments(calls, slice(0, 1), None, True)
        if not arguments.cache:
            raise Unread("the model gives its attention no cache")
        cache = arguments.value(arguments.cache)
        drawn = calls.cache(self.spec)
        cache.update(*(drawn[x].to(self.dtype) for x in ("key", "value")), self._index())
        return cache

    def _index(self) -> int:
        for name in ("layer_idx", "layer_number", "layer_id"):
            value = getattr(self.skeleton.module, name, None)
            if isinstance(value, int):
                return value
        raise Unread("the attention does not know its layer's number")

    def _report(self, cache: Any, batch: int, past: int) -> None:
        """Every other layer reports the past as well: masks are made from one of them."""
        own, layers = self._index(), getattr(cache, "layers", [])
        text = self.skeleton.model.config.get_text_config()
        for at in range(max(len(layers), getattr(text, "num_hidden_layers", 0))):
            try:
                length = layers[at].get_seq_length() if at < len(layers) else 0
                if at != own and length < past:
                    new = torch.zeros(batch, 1, past - length, 1, dtype=self.dtype)
                    cache.update(new, new, at)
            except Exception:  # a layer of another kind, such as a recurrent one
                continue


@contextmanager
def cast(skeleton: Skeleton, rounded: torch.dtype, dtype: torch.dtype) -> Iterator[None]:
    """The layer's weights rounded, then in `dtype`, and in it what is real on the way to them; not
    what transformers keeps in float32 itself, such as inverse frequencies."""
    before = []
    parts = [skeleton.model.get_submodule(x) for x in skeleton.parts]
    ours = {id(x._parameters) for part in parts for x in part.modules()}
    for module in skeleton.model.modules():
        for values in (module._parameters, module._buffers):
            before.append((values, dict(values)))
            for name, tensor in values.items():
                if tensor is None or tensor.device.type == "meta":
                    continue
                if id(values) in ours or tensor.dtype is torch.float64:
                    fresh = tensor.detach().to(rounded).to(dtype)
                    learned = values is module._parameters
                    values[name] = nn.Parameter(fresh, False) if learned else fresh
    try:
        yield
    finally:
        for values, uncast in before:
            values.update(uncast)


@contextmanager
def kept(skeleton: Skeleton) -> Iterator[None]:
    """Rotary embeddings that change with the length of a call are as before afterwards."""
    modules = [x for x in skeleton.model.modules() if is_rotary(x)]
    before = [(x, dict(vars(x)), dict(x._buffers)) for x in modules]
    for module, _, buffers in before:
        module._buffers.update({k: v if v is None else v.clone() for k, v in buffers.items()})
    try:
        yield
    finally:
        for module, attributes, buffers in before:
            vars(module).clear()
            vars(module).update(attributes)
            module._buffers.clear()
            module._buffers.update(buffers)


def _limit_masks(bound: inspect.BoundArguments) -> None:
    """Additive masks no lower than float32 goes: the float32 softmax would take the lowest float64
    for minus infinity, and make NaN of a token that sees nothing."""
    for name, value in bound.arguments.items():
        if bound.signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            bound.arguments[name] = {k: _limited(k, v) for k, v in value.items()}
        else:
            bound.arguments[name] = _limited(name, value)


def _limited(name: str, value: Any) -> Any:
    if "mask" in name and isinstance(value, Mapping):
        return {k: _limited(name, v) for k, v in value.items()}
    if "mask" in name and isinstance(value, Tensor) and value.dtype is torch.float64:
        return value.clamp(min=LOWEST)
    return value

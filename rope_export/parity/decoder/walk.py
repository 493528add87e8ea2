"""Forwards of transformers' model that stop at each layer, so that many go through it together.

A forward runs in a thread of its own, with a copy of everything around the layers. Where its model
calls a layer, it waits for whoever drives it, who runs the layer and hands back what it returns. So
one layer after the other is needed, for all calls, and the model's own code stays as it is. Only
one thread computes at any time.
"""

import copy
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import torch
from torch import nn

from rope_export.parity.decoder.theirs import Theirs


@dataclass(frozen=True, kw_only=True)
class LayerCall:
    """One call of a layer by its model, with the arguments that it is given."""

    layer: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def hidden_states(self) -> torch.Tensor:
        value: torch.Tensor = self.args[0] if self.args else self.kwargs["hidden_states"]
        return value

    def on(self, hidden_states: torch.Tensor, kwargs: dict[str, Any]) -> "LayerCall":
        """The same call on other hidden states and arguments by name."""
        if self.args:
            return LayerCall(layer=self.layer, args=(hidden_states, *self.args[1:]), kwargs=kwargs)
        kwargs = {**kwargs, "hidden_states": hidden_states}
        return LayerCall(layer=self.layer, args=(), kwargs=kwargs)


class Stopped(Exception):
    """The driver has ended the forward."""


class Walk:
    """What `forward` makes of a copy of the model, from one layer to the next.

    mode: makes the context that it runs in; also for whoever runs the layers.
    """

    def __init__(
        self,
        theirs: Theirs,
        forward: Callable[[Any], Any],
        mode: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self.mode = mode
        self._model = with_stubs(theirs, self._at_layer)
        self._forward = forward
        self._to, self._from = SimpleQueue[Any](), SimpleQueue[Any]()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.result: Any = None
        self.call: LayerCall | None = None

    def start(self) -> None:
        """Run to the first layer. Raises: what the model's code raises."""
        self._thread.start()
        self._wait()

    def go_on(self, output: Any) -> None:
        """Hand back what the layer returned; run to the next one, or to the end, where `call` is
        none and `result` is there."""
        self._to.put(output)
        self._wait()

    def stop(self) -> None:
        """End it, wherever it is."""
        if self._thread.is_alive():
            self._to.put(Stopped())
            self._thread.join()

    def _wait(self) -> None:
        kind, value = self._from.get()
        self.call = value if kind == "layer" else None
        if kind == "result":
            self.result = value
        if kind == "error":
            raise value

    def _run(self) -> None:
        try:
            with torch.no_grad(), self.mode():
                result = self._forward(self._model)
            self._from.put(("result", result))
        except Stopped:
            pass
        except Exception as error:  # raised again in the driver's thread
            self._from.put(("error", error))

    def _at_layer(self, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._from.put(("layer", LayerCall(layer=index, args=args, kwargs=kwargs)))
        output = self._to.get()
        if isinstance(output, Stopped):
            raise output
        return output


def with_stubs(theirs: Theirs, at_layer: Callable[..., Any]) -> nn.Module:
    """The model, whose parameters are shared and whose layers call `at_layer` with their index,
    arguments and keyword arguments."""
    shared: dict[int, Any] = {id(x): x for x in theirs.model.parameters()}
    for index, layer in enumerate(theirs.layers):
        stub = copy.copy(layer)
        stub.__dict__["forward"] = _Stub(at_layer, index)
        shared[id(layer)] = stub
    return copy.deepcopy(theirs.model, shared)


class _Stub:
    """In place of a layer's forward."""

    def __init__(self, at_layer: Callable[..., Any], index: int) -> None:
        self.at_layer, self.index = at_layer, index

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.at_layer(self.index, args, kwargs)

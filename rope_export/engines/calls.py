"""Calls of an engine: which addresses its tensors get, and which context runs them.

A context takes one call at a time and has a profile, so there is a small pool of them. Decoding
with a fixed cache repeats one call with the same addresses: it is recorded as a CUDA graph.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import BoundedSemaphore, Lock
from typing import TYPE_CHECKING, Any

from rope_export.engines.execution import Context, Device
from rope_export.interface import Interface

if TYPE_CHECKING:
    import torch

CONTEXTS = 2
"""How many calls may run at once; each context has scratch memory of its own."""

GRAPHS = 4
"""How many decoding streams have a graph at once."""

Tensors = Mapping[str, "torch.Tensor"]


@dataclass
class _Held:
    """A context, the shapes and addresses that were set last, and the point after its last call."""

    context: Context
    profile: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    busy: Any = None

    def prepare(
        self, profile: int, stream: int, inputs: Tensors, addresses: Mapping[str, int]
    ) -> None:
        """Set what has changed since the last call."""
        if profile != self.profile:
            self.context.use_profile(profile, stream)
            self.profile, self.settings = profile, {}
        for name, tensor in inputs.items():
            shape = tuple(tensor.shape)
            if self.settings.get(f"shape of {name}") != shape:
                self.context.set_shape(name, shape)
                self.settings[f"shape of {name}"] = shape
        for name, address in addresses.items():
            if self.settings.get(name) != address:
                self.context.bind(name, address)
                self.settings[name] = address


@dataclass
class _Graph:
    """A call that is repeated. inputs, outputs: those that are copied in and out of it."""

    held: _Held
    inputs: dict[str, "torch.Tensor"]
    outputs: dict[str, "torch.Tensor"]
    replay: Callable[[], None] | None = None
    lock: Lock = field(default_factory=Lock)


class Calls:
    """Runs calls on tensors that lie on the device; may be used from several threads."""

    def __init__(
        self, interface: Interface, context: Callable[[], Context], device: Device
    ) -> None:
        import torch

        self._outputs, self._make, self._device = interface.outputs, context, device
        self._fixed = interface.cache == "fixed"
        # Of these a call's shapes are made; others, such as slots in use, change in every call.
        shapes = (tensor.shape for tensor in interface.inputs)
        self._axes = sorted({axis for x in shapes for axis in x if isinstance(axis, str)})
        self._free: list[_Held] = []
        self._lock, self._slots = Lock(), BoundedSemaphore(CONTEXTS)
        self._graphs: OrderedDict[Any, _Graph | None] = OrderedDict()
        self._some = torch.zeros(256, dtype=torch.uint8, device=device.place)
        pairs = interface.caches if self._fixed else ()
        self.pairs = {pair.output: pair.input for pair in pairs}

    def run(
        self, profile: int, inputs: Tensors, axes: Mapping[str, int], caches: Tensors
    ) -> dict[str, "torch.Tensor"]:
        """Every output by name.

        axes: the size of every dynamic axis. caches: outputs that are to be written where these
        tensors lie, which are inputs.
        """
        cache_inputs = self.pairs.values()
        bound = {name: self._placed(x) for name, x in inputs.items() if name not in cache_inputs}
        outputs: dict[str, torch.Tensor] = {}
        own = {after for after, tensor in caches.items() if self._aligned(tensor)}
        for after, before in self.pairs.items():
            cache = caches[after] if after in own else self._copy(inputs[before])
            outputs[after] = bound[before] = cache
        graph = None
        if self._fixed and axes["sequence"] == 1 and own == self.pairs.keys():
            graph = self._graph(profile, bound, axes, outputs)
        if graph is not None:
            return self._repeat(graph, profile, bound, outputs)
        for tensor in self._outputs:
            if tensor.name not in outputs:
                outputs[tensor.name] = self._new(tensor.sized(axes), tensor.dtype)
        with self._context() as held:
            self._enqueue(held, profile, bound, outputs)
        return outputs

    def _enqueue(self, held: _Held, profile: int, inputs: Tensors, outputs: Tensors) -> None:
        stream = self._device.stream()
        if held.busy is not None:
            self._device.wait(held.busy)
        every = {**inputs, **outputs}
        addresses = {name: self._address(tensor) for name, tensor in every.items()}
        held.prepare(profile, stream, inputs, addresses)
        held.context.enqueue(stream)
        held.busy = self._device.mark()

    @contextmanager
    def _context(self) -> Iterator[_Held]:
        """A context that nobody else uses; one that failed is not used again."""
        with self._slots:
            with self._lock:
                held = self._free.pop() if self._free else None
            held = held or _Held(self._make())
            yield held
            with self._lock:
                self._free.append(held)

    def _graph(
        self, profile: int, inputs: Tensors, axes: Mapping[str, int], caches: Tensors
    ) -> _Graph | None:
        """The graph of a stream that decodes into its own cache, from the second call on."""
        sizes = (axes[name] for name in self._axes)
        key = (profile, *sizes, *(x.data_ptr() for x in caches.values()))
        with self._lock:
            if key not in self._graphs:
                self._graphs[key] = None
                while len(self._graphs) > GRAPHS:
                    self._graphs.popitem(last=False)
                return None
            self._graphs.move_to_end(key)
            graph = self._graphs[key]
            if graph is None:
                kept = {n: self._copy(x) for n, x in inputs.items() if n not in self.pairs.values()}
                fresh = {
                    t.name: self._new(t.sized(axes), t.dtype)
                    for t in self._outputs
                    if t.name not in caches
                }
                graph = _Graph(held=_Held(self._make()), inputs=kept, outputs=fresh)
                self._graphs[key] = graph
            return graph

    def _repeat(
        self, graph: _Graph, profile: int, inputs: Tensors, caches: Tensors
    ) -> dict[str, "torch.Tensor"]:
        """Run a repeated call: the first time as any other, which sets the context up, and recorded
        then."""
        with graph.lock:
            if graph.held.busy is not None:
                self._device.wait(graph.held.busy)
            for name, tensor in graph.inputs.items():
                tensor.copy_(inputs[name])
            if graph.replay is not None:
                graph.replay()
                graph.held.busy = self._device.mark()
            else:
                copies = {**inputs, **graph.inputs}
                self._enqueue(graph.held, profile, copies, {**graph.outputs, **caches})
                if graph.held.context.capturable(self._device.stream()):
                    graph.replay = self._device.capture(graph.held.context.enqueue)
            return {name: x.clone() for name, x in graph.outputs.items()} | dict(caches)

    def _placed(self, tensor: "torch.Tensor") -> "torch.Tensor":
        """The tensor where a context can read it: contiguous and aligned."""
        tensor = tensor.contiguous()
        return tensor if self._aligned(tensor) else self._copy(tensor)

    def _aligned(self, tensor: "torch.Tensor") -> bool:
        return tensor.is_contiguous() and tensor.data_ptr() % self._device.alignment == 0

    def _copy(self, tensor: "torch.Tensor") -> "torch.Tensor":
        import torch

        copy = torch.empty_like(tensor, memory_format=torch.contiguous_format)
        return copy.copy_(tensor)

    def _new(self, shape: tuple[int, ...], dtype: str) -> "torch.Tensor":
        import torch

        return torch.empty(shape, dtype=getattr(torch, dtype), device=self._device.place)

    def _address(self, tensor: "torch.Tensor") -> int:
        """The address of a tensor; of an empty one, as TensorRT takes no 0, that of some memory."""
        return (tensor if tensor.numel() else self._some).data_ptr()

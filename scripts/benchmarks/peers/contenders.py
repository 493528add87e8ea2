"""A layer ready to be called: the exporters' graphs and our artifacts, in one form.

A call takes what is cached and gives what is cached afterwards; it can be repeated from the same
state, so that every repetition of a measurement does the same work.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from rope_export import open_session
from scripts.benchmarks.peers.checkpoint import Sizes
from scripts.benchmarks.peers.layer import Layer

FATAL_ONLY = 4
"""onnxruntime's log severity: what it refuses is caught, and stands in the table."""
Arrays = dict[str, np.ndarray]


class Refusal(Exception):
    """A contender cannot run a case; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """hidden: float32 (batch, new, hidden). positions: int64 (batch, new). mask: int64 (batch,
    past + new), 1 for a token and 0 for padding on the left."""

    hidden: np.ndarray
    positions: np.ndarray
    mask: np.ndarray

    @property
    def padded(self) -> bool:
        return not self.mask.all()

    @property
    def past(self) -> int:
        return self.mask.shape[1] - self.hidden.shape[1]


@dataclass(frozen=True, kw_only=True)
class State:
    """What is cached after `length` tokens; `held` is the contender's own."""

    length: int
    held: Any


class Contender(ABC):
    """A layer that can be called."""

    @abstractmethod
    def begin(self, batch: int, past: int = 0) -> State:
        """A cache that holds `past` tokens of no meaning, for measurements of time."""

    @abstractmethod
    def call(self, state: State, call: Call) -> tuple[np.ndarray, State]:
        """The layer's output of the new tokens, and the cache with them in it.

        Raises: Refusal, or what the runtime raises.
        """

    def close(self) -> None:  # noqa: B027 - most have nothing to give back
        """Give back what the contender holds."""


class Graph(Contender):
    """An ONNX file in onnxruntime, its tensors bound by address."""

    def __init__(self, layer: Layer, sizes: Sizes, threads: int) -> None:
        self.layer, self.sizes = layer, sizes
        options = onnxruntime.SessionOptions()
        options.log_severity_level = FATAL_ONLY
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(
            str(layer.path), options, providers=["CPUExecutionProvider"]
        )

    def cache(self, batch: int, slots: int) -> list[np.ndarray]:
        """Key and value, drawn, as wide and as many as the layer has them."""
        sizes = self.sizes
        shape: tuple[int, ...] = (batch, sizes.kv_heads, slots, sizes.head_dim)
        if self.layer.by_slot:
            shape = (batch, slots, sizes.kv_heads * sizes.head_dim)
        generator = np.random.default_rng(slots)
        return [generator.standard_normal(shape, dtype=np.float32) for _ in self.layer.caches]

    def run(self, call: Call, caches: list[np.ndarray], presents: list[np.ndarray]) -> np.ndarray:
        """One call that reads `caches` and writes `presents`, which may be the same."""
        layer, binding = self.layer, self.session.io_binding()
        feeds = {layer.hidden: call.hidden, **self.side(call)}
        feeds |= {before: x for (before, _), x in zip(layer.caches, caches, strict=True)}
        output = np.empty(call.hidden.shape, np.float32)
        gives = {layer.output: output}
        gives |= {after: x for (_, after), x in zip(layer.caches, presents, strict=True)}
        for bind, tensors in ((binding.bind_input, feeds), (binding.bind_output, gives)):
            for name, x in tensors.items():
                bind(name, "cpu", 0, x.dtype.type, x.shape, x.ctypes.data)
        self.session.run_with_iobinding(binding)
        return output

    def side(self, call: Call) -> Arrays:
        """The other inputs of the layer. input_ids only give their shape.

        Raises: Refusal of padding where there is no mask.
        """
        batch, new = call.positions.shape
        tensors = {
            "input_ids": np.zeros((batch, new), np.int64),
            "attention_mask": call.mask,
            "position_ids": call.positions,
            "write_indices": np.full(batch, call.past),
            "nonpad_kv_seqlen": np.full(batch, call.past + new),
        }
        if call.padded and "attention_mask" not in self.layer.side:
            raise Refusal("the layer takes no attention_mask")
        return {name: np.ascontiguousarray(tensors[name]) for name in self.layer.side}


class Growing(Graph):
    """Growing caches: past in, present out, freshly allocated in every call."""

    def begin(self, batch: int, past: int = 0) -> State:
        return State(length=past, held=self.cache(batch, past))

    def call(self, state: State, call: Call) -> tuple[np.ndarray, State]:
        axis = 1 if self.layer.by_slot else 2
        total = call.mask.shape[1]
        presents = []
        for past in state.held:
            shape = (*past.shape[:axis], total, *past.shape[axis + 1 :])
            presents.append(np.empty(shape, np.float32))
        output = self.run(call, state.held, presents)
        return output, State(length=total, held=presents)


class InPlace(Graph):
    """Caches of fixed size, written where they are: inputs and outputs are the same memory."""

    def __init__(self, layer: Layer, sizes: Sizes, threads: int, capacity: int) -> None:
        super().__init__(layer, sizes, threads)
        self.capacity = layer.capacity or capacity

    def begin(self, batch: int, past: int = 0) -> State:
        return State(length=past, held=self.cache(batch, self.capacity))

    def call(self, state: State, call: Call) -> tuple[np.ndarray, State]:
        output = self.run(call, state.held, state.held)
        return output, State(length=call.mask.shape[1], held=state.held)


class OursGrowing(Contender):
    """An artifact with a growing cache, by its session's `run`."""

    def __init__(self, artifact: Path, sizes: Sizes, threads: int) -> None:
        self.sizes = sizes
        self.session = open_session(artifact, threads=threads)
        self.names = {tensor.name for tensor in self.session.inputs}

    def begin(self, batch: int, past: int = 0) -> State:
        shape = (batch, self.sizes.kv_heads, past, self.sizes.head_dim)
        generator = np.random.default_rng(past)
        pair = [generator.standard_normal(shape, dtype=np.float32) for _ in range(2)]
        return State(length=past, held=dict(zip(("past_key", "past_value"), pair, strict=True)))

    def call(self, state: State, call: Call) -> tuple[np.ndarray, State]:
        inputs = {"hidden_states": call.hidden, "position_ids": call.positions, **state.held}
        if "attention_mask" in self.names:
            inputs["attention_mask"] = call.mask
        elif call.padded:
            raise Refusal("exported without --padding")
        outputs: Mapping[str, Any] = self.session.run(inputs)
        held = {f"past_{name}": outputs[f"present_{name}"] for name in ("key", "value")}
        return outputs["attention_output"], State(length=call.mask.shape[1], held=held)

    def close(self) -> None:
        self.session.close()


class OursStream(OursGrowing):
    """An artifact with a fixed cache, by a stream that starts again at the state's length."""

    def __init__(self, artifact: Path, sizes: Sizes, threads: int, capacity: int) -> None:
        super().__init__(artifact, sizes, threads)
        self.capacity = capacity

    def begin(self, batch: int, past: int = 0) -> State:
        """What is cached is zeros, and takes as long: no time depends on the values."""
        session: Any = self.session
        return State(length=past, held=session.start(batch=batch, capacity=self.capacity))

    def call(self, state: State, call: Call) -> tuple[np.ndarray, State]:
        more = {}
        if "attention_mask" in self.names:
            more["attention_mask"] = np.ascontiguousarray(call.mask[:, call.past :])
        elif call.padded:
            raise Refusal("exported without --padding")
        batch = len(call.hidden)
        state.held.assume_lengths(np.full(batch, state.length))
        output = state.held.step(call.hidden, call.positions, **more)
        return output, State(length=call.mask.shape[1], held=state.held)

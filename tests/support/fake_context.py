"""A machine without a GPU: an execution context that computes on the CPU.

It knows nothing but the shapes and addresses it is told, as TensorRT's own: it reads the inputs
there, runs the engine's ONNX model in onnxruntime, and writes the outputs where it is told. What
TensorRT refuses or gets wrong, it refuses: see `_check`.
"""

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import onnxruntime

from rope_export.arrays import numpy_dtype
from rope_export.engines.plan import Engine
from rope_export.interface import TensorType

STREAM, CAPTURE = 7, 8


class FakeDevice:
    """The CPU as a device. Marks are counted, recorded work is run by replay alone."""

    place = "cpu"
    alignment = 16  # numpy's own

    def __init__(self) -> None:
        self.marks = self.waits = self.replays = 0
        self.recorded: Callable[[], None] | None = None

    def stream(self) -> int:
        return STREAM

    def mark(self) -> int:
        self.marks += 1
        return self.marks

    def wait(self, mark: int) -> None:
        assert 0 < mark <= self.marks
        self.waits += 1

    def capture(self, work: Callable[[int], None]) -> Callable[[], None]:
        self.recorded = None
        work(CAPTURE)
        recorded = self.recorded
        assert recorded is not None

        def replay() -> None:
            self.replays += 1
            recorded()

        return replay


class FakeContext:
    """One context of an engine; `machine.calls` has what every context was asked to run."""

    def __init__(self, machine: "FakeMachine") -> None:
        self.machine, self.number = machine, machine.made
        self.profile: int | None = None
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def use_profile(self, index: int, stream: int) -> None:
        assert 0 <= index < len(self.machine.engine.facts.profiles)
        self.profile, self.shapes, self.addresses = index, {}, {}

    def set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        self.shapes[name] = shape

    def bind(self, name: str, address: int) -> None:
        assert address, f"{name} is bound to 0"
        assert address % FakeDevice.alignment == 0, f"{name} is not aligned"
        self.addresses[name] = address

    def enqueue(self, stream: int) -> None:
        work = self._work()
        if stream == CAPTURE:
            self.machine.device.recorded = work
        else:
            work()

    def capturable(self, stream: int) -> bool:
        return self.machine.capturable

    def _work(self) -> Callable[[], None]:
        """The call as it was told until now."""
        engine, addresses = self.machine.engine, dict(self.addresses)
        sizes = self._check()
        call = {"profile": self.profile, "sizes": sizes, "addresses": addresses}
        call["context"] = self.number

        def work() -> None:
            self.machine.calls.append(call)
            if self.machine.breaks:
                raise self.machine.breaks
            inputs = {t.name: _at(addresses[t.name], t, sizes).copy() for t in engine.facts.inputs}
            outputs = _model(str(engine.model)).run([t.name for t in engine.facts.outputs], inputs)
            for tensor, value in zip(engine.facts.outputs, outputs, strict=True):
                _at(addresses[tensor.name], tensor, sizes)[...] = value + self.machine.wrong

        return work

    def _check(self) -> dict[str, int]:
        """What every tensor must have been told; the sizes of the axes."""
        facts = self.machine.engine.facts
        assert self.profile is not None, "no profile is chosen"
        assert self.shapes.keys() == {t.name for t in facts.inputs}
        assert self.addresses.keys() == {t.name for t in (*facts.inputs, *facts.outputs)}
        sizes: dict[str, int] = {"past": 0}
        for tensor in facts.inputs:
            low, _, high = facts.profiles[self.profile].shapes(tensor)
            shape = self.shapes[tensor.name]
            assert all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True)), (low, shape)
            sizes |= {
                axis: size
                for axis, size in zip(tensor.shape, shape, strict=True)
                if isinstance(axis, str)
            }
        interface = self.machine.engine.manifest.interface
        if interface.cache == "fixed":  # a KV-cache update writes where it reads
            for pair in interface.caches:
                assert self.addresses[pair.output] == self.addresses[pair.input]
        return sizes


class FakeMachine:
    """Makes contexts for an engine. wrong: added to every output. breaks: raised by every call."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.device = engine, FakeDevice()
        self.calls: list[dict[str, Any]] = []
        self.made = 0
        self.wrong, self.capturable = 0.0, True
        self.breaks: Exception | None = None

    def context(self) -> FakeContext:
        self.made += 1
        return FakeContext(self)


def _at(address: int, tensor: TensorType, sizes: dict[str, int]) -> np.ndarray:
    """The tensor that lies at an address."""
    shape, dtype = tensor.sized(sizes), numpy_dtype(tensor.dtype)
    count = int(np.prod(shape)) * dtype.itemsize
    memory = (ctypes.c_uint8 * count).from_address(address)
    return np.frombuffer(memory, dtype).reshape(shape)


@cache
def _model(path: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

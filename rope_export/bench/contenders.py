"""Contenders: each prepares a call of a shape, or gives the reason why it cannot."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rope_export.arrays import fill_cache, to_numpy
from rope_export.artifacts.artifact import layer_of
from rope_export.artifacts.folder import Folder
from rope_export.bench.proof import Truth, WrongError, apart, timed_on
from rope_export.bench.shapes import Arrays, Shape, growing_interface
from rope_export.bench.timing import Call
from rope_export.errors import RopeExportError
from rope_export.interface import Interface
from rope_export.sessions import open_session
from rope_export.sessions.stream import Stream
from rope_export.spec import AttentionSpec

if TYPE_CHECKING:
    from rope_export.arrays import Array


class CannotError(RopeExportError):
    """A contender cannot run a shape; the message gives the reason."""


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A call that can be timed. error: how far its answer is from eager's, none if not compared;
    allowed: how far it might be."""

    call: Call
    error: float | None = None
    allowed: float | None = None


class Contender(ABC):
    """One way to run the layer.

    name: what rows call it. weight_bytes: of its weights as it stores them.
    """

    name: str
    spec: AttentionSpec
    weight_bytes: int

    @abstractmethod
    def prepare(self, shape: Shape, inputs: Arrays, truth: Truth | None) -> Ready:
        """A call of this shape on these inputs, its answer compared with `truth` if given.

        inputs: as `shapes.drawn` makes them.
        Raises: CannotError if it cannot run the shape; WrongError if the answer is wrong.
        """

    def close(self) -> None:  # noqa: B027 - most have nothing to give back
        """Give back what the contender holds."""


class ArtifactContender(Contender):
    """An artifact on onnxruntime, or an engine on its GPU: through a Stream where its cache is
    fixed, by `run` otherwise.

    threads: of the session; onnxruntime's own choice unless given. capacity: slots of a fixed
    cache; without, as many as the shape fills. proven: the error that verification let pass.
    """

    def __init__(
        self,
        name: str,
        artifact: Folder,
        *,
        threads: int | None,
        capacity: int | None = None,
        proven: float = 0.0,
    ) -> None:
        self.name, self.manifest, self.proven = name, artifact.manifest, proven
        self.capacity = capacity
        self.spec = AttentionSpec.from_json(layer_of(artifact).facts.spec)
        self.weight_bytes = sum(file.bytes for file in artifact.manifest.files.values())
        self.session = open_session(artifact, timed_on(artifact), threads=threads)

    def prepare(self, shape: Shape, inputs: Arrays, truth: Truth | None) -> Ready:
        capacity = self.session.capacity or self.capacity or shape.total
        if self.manifest.cache == "none" and shape.past:
            raise CannotError("it has no cache, so past must be 0")
        if self.manifest.cache == "fixed" and capacity < shape.total:
            raise CannotError(f"capacity {capacity}, the shape fills {shape.total} slots")
        feeds = feeds_of(self.session.interface, self.spec, shape, inputs, capacity)
        error = allowed = None
        if truth is not None:
            allowed = max(truth.tolerance, 2 * self.proven)
            output = self._run(feeds)[self.session.interface.main_output]
            error = truth.check(output, allowed)
        if self.manifest.cache != "fixed":
            return Ready(call=lambda: self.session.run(feeds), error=error, allowed=allowed)
        stream = self.session.start(batch=shape.batch, capacity=capacity)
        if allowed is not None:
            self._try(stream, shape, feeds, allowed)
        return Ready(call=steps(stream, shape, feeds), error=error, allowed=allowed)

    def _run(self, feeds: Arrays) -> Arrays:
        """Raises: CannotError for what the session refuses."""
        try:
            return {name: to_numpy(x) for name, x in self.session.run(feeds).items()}
        except RopeExportError as error:
            raise CannotError(str(error)) from error

    def _try(self, stream: Stream, shape: Shape, feeds: Arrays, allowed: float) -> None:
        """Raises: WrongError if a stream, empty at first, reads and writes its cache otherwise than
        `run` does."""
        interface = self.session.interface
        assert interface.lengths is not None
        empty = (*(pair.input for pair in interface.caches), interface.lengths)
        inputs = feeds | {name: np.zeros_like(feeds[name]) for name in empty}
        for _ in range(2 if 2 * shape.sequence <= (stream.capacity or 0) else 1):
            outputs = self._run(inputs)
            error = apart(to_numpy(_step(stream, feeds)), outputs[interface.main_output])
            if not error <= allowed:
                raise WrongError(f"its Stream is off by {error:.1e} of what `run` gives")
            inputs |= {pair.input: outputs[pair.output] for pair in interface.caches}
            inputs[interface.lengths] = inputs[interface.lengths] + shape.sequence

    def close(self) -> None:
        self.session.close()


def steps(stream: Stream, shape: Shape, feeds: Arrays) -> Call:
    """Steps that each start from `past` entries: zeros, for what lies there takes no time."""
    at = np.full(shape.batch, shape.past, np.int64)

    def step() -> object:
        stream.assume_lengths(at)
        return _step(stream, feeds)

    return step


def _step(stream: Stream, feeds: Arrays) -> "Array":
    """One step, on the tokens of `feeds` and their positions."""
    interface = stream.interface
    positions = None if interface.positions is None else feeds[interface.positions]
    return stream.step(feeds[interface.main_input], positions)


def feeds_of(
    interface: Interface, spec: AttentionSpec, shape: Shape, inputs: Arrays, capacity: int
) -> Arrays:
    """The inputs of an artifact, made from those that `shapes.drawn` makes.

    Raises: CannotError for an artifact that takes others.
    """
    growing = growing_interface(spec)
    axes = {"batch": shape.batch, "total": shape.total, "capacity": capacity}
    feeds = {interface.main_input: inputs[growing.main_input]}
    if interface.positions is not None and growing.positions is not None:
        feeds[interface.positions] = inputs[growing.positions]
    if interface.mask is not None:
        feeds[interface.mask] = np.ones(interface.input(interface.mask).sized(axes), np.int64)
    if interface.lengths is not None:
        feeds[interface.lengths] = np.full(shape.batch, shape.past, np.int64)
    for pair, source in zip(interface.caches, growing.caches, strict=False):
        feeds[pair.input] = cache = inputs[source.input]
        if interface.cache == "fixed":
            feeds[pair.input] = np.zeros(interface.input(pair.input).sized(axes), cache.dtype)
            fill_cache(feeds[pair.input], cache, pair.axis, [shape.past] * shape.batch)
    for tensor in interface.inputs:
        if tensor.name not in feeds:
            raise CannotError(f"it takes {tensor.name!r}, which bench does not know")
    return feeds

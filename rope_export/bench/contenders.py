"""What takes part: each contender makes a call of a shape ready, or says why it cannot."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from rope_export.arrays import to_numpy
from rope_export.artifacts.artifact import Artifact
from rope_export.bench.proof import Truth, WrongError, apart, timed_on
from rope_export.bench.shapes import Arrays, Shape
from rope_export.bench.timing import Call
from rope_export.errors import RopeExportError
from rope_export.interface import LENGTHS, TensorType
from rope_export.sessions import open_session
from rope_export.sessions.stream import Stream
from rope_export.spec import AttentionSpec


class CannotError(RopeExportError):
    """A contender has no way to run a shape; the message says why."""


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
        artifact: Artifact,
        *,
        threads: int | None,
        capacity: int | None = None,
        proven: float = 0.0,
    ) -> None:
        self.name, self.manifest, self.proven = name, artifact.manifest, proven
        self.capacity = capacity
        self.spec = AttentionSpec.from_json(artifact.manifest.spec)
        self.weight_bytes = sum(int(f["bytes"]) for f in artifact.manifest.files.values())
        self.session = open_session(artifact, timed_on(artifact), threads=threads)

    def prepare(self, shape: Shape, inputs: Arrays, truth: Truth | None) -> Ready:
        capacity = self.session.capacity or self.capacity or shape.total
        if self.manifest.cache == "none" and shape.past:
            raise CannotError("it has no cache, so past must be 0")
        if self.manifest.cache == "fixed" and capacity < shape.total:
            raise CannotError(f"capacity {capacity}, the shape fills {shape.total} slots")
        feeds = {t.name: _feed(t, shape, inputs, capacity) for t in self.manifest.inputs}
        error = allowed = None
        if truth is not None:
            allowed = max(truth.budget, 2 * self.proven)
            error = truth.check(self._run(feeds)["attention_output"], allowed)
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
        caches = [name for name in feeds if name.endswith("_cache")]
        given = feeds | {name: np.zeros_like(feeds[name]) for name in (*caches, LENGTHS)}
        for _ in range(2 if 2 * shape.sequence <= (stream.capacity or 0) else 1):
            outputs = self._run(given)
            answer = to_numpy(stream.step(feeds["hidden_states"], feeds.get("position_ids")))
            error = apart(answer, outputs["attention_output"])
            if not error <= allowed:
                raise WrongError(f"its Stream is off by {error:.1e} of what `run` gives")
            given |= {name: outputs[f"{name}_out"] for name in caches}
            given[LENGTHS] = given[LENGTHS] + shape.sequence

    def close(self) -> None:
        self.session.close()


def steps(stream: Stream, shape: Shape, feeds: Arrays) -> Call:
    """Steps that each start from `past` entries: zeros, for what lies there takes no time."""
    hidden, positions = feeds["hidden_states"], feeds.get("position_ids")
    at = np.full(shape.batch, shape.past, np.int64)

    def step() -> object:
        stream.assume_lengths(at)
        return stream.step(hidden, positions)

    return step


def _feed(tensor: TensorType, shape: Shape, inputs: Arrays, capacity: int) -> np.ndarray:
    """One input of an artifact, made from the inputs of a growing cache without padding."""
    axes = {"batch": shape.batch, "total": shape.total, "capacity": capacity}
    if tensor.name in inputs:
        return inputs[tensor.name]
    if tensor.name == "attention_mask":
        return np.ones(tensor.sized(axes), np.int64)
    if tensor.name == LENGTHS:
        return np.full(tensor.sized(axes), shape.past, np.int64)
    past = inputs.get(f"past_{tensor.name.removesuffix('_cache')}")
    if past is None:
        raise CannotError(f"it takes {tensor.name!r}, which bench does not know")
    cache = np.zeros(tensor.sized(axes), past.dtype)
    cache[..., : shape.past, :] = past
    return cache

"""A session: an open artifact that runs single calls, and starts streams of them."""

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np

from rope_export.arrays import dtype_name, plain_inputs
from rope_export.artifacts.folder import Folder, peek, steady
from rope_export.errors import InputError, UnavailableError
from rope_export.runtimes import Runner, Runtime, find_runtime
from rope_export.sessions.stream import Stream
from rope_export.sessions.values import (
    ValueChecks,
    check_plain,
    check_positions,
    check_tokens,
    row_lengths,
)

if TYPE_CHECKING:
    from rope_export.arrays import Array
    from rope_export.artifacts.manifest import ModelFacts


class Session:
    """An open artifact. `run` keeps no state and may be called from several threads at once.

    manifest: its facts. inputs, outputs: its tensors. runner: what runs the calls once they are
    checked.
    """

    def __init__(self, manifest: "ModelFacts", runner: Runner) -> None:
        self.manifest, self.runner = manifest, runner
        self.interface = manifest.interface
        self.inputs, self.outputs = self.interface.inputs, self.interface.outputs
        self._values = ValueChecks(manifest, whole_capacity=runner.whole_capacity)

    def run(
        self, inputs: "Mapping[str, Array]", *, check_values: bool = True
    ) -> "dict[str, Array]":
        """One call.

        inputs: every tensor the artifact takes, but for those that may be left out, all numpy
            arrays or all torch tensors, with the names, dtypes and shapes of the interface;
            bfloat16 in numpy is ml_dtypes' bfloat16. Of any byte order and strides; what has no
            plain memory is refused.
        check_values: look at the values of a mask, and at the slots of a cache that are padding,
            or not valid where the manifest's stale_slots says "finite": a NaN there would spoil
            the row. A buffer is looked at once, as long as it lives. False skips this.
        Returns: every output by name, of the same kind and on the same device as the inputs; of a
            fixed cache a copy with the new slots (a Stream writes in place).
        Raises: TensorError, before anything is run, for what does not fit the interface.
        """
        values, interface = plain_inputs(inputs), self.interface
        axes = interface.bind_axes({n: (dtype_name(x), x.shape) for n, x in values.items()})
        rows = row_lengths(interface, values, axes)
        if rows is not None:
            lengths = rows.tolist()
            interface.check_lengths(lengths, axes["sequence"], axes["capacity"])
            interface.check_covered(lengths, axes["sequence"], axes.get("total", axes["capacity"]))
        check_tokens(self.manifest, values)
        check_positions(self.manifest, values)
        self._check_plain(values, axes, rows)
        if check_values:
            self._values.check(inputs, values, axes)
        return self.runner.run(values, axes, {})

    def _check_plain(
        self, values: "dict[str, Array]", axes: Mapping[str, int], lengths: np.ndarray | None
    ) -> None:
        """Raises: TensorError for what a model that was exported without padding does not do."""
        mask = self.interface.mask
        if mask is None or self.manifest.padding:
            return
        past = np.array([axes.get("past", 0)]) if lengths is None else lengths
        check_plain(
            self.manifest,
            rows=axes["batch"],
            new=axes["sequence"],
            lengths=past,
            padded=bool((values[mask] == 0).any()),
        )

    @property
    def capacity(self) -> int | None:
        """The number of slots that a fixed cache must have on this runtime, if only one works."""
        return self.runner.capacity

    def start(self, batch: int = 1, capacity: int | None = None) -> Stream:
        """A sequence of calls that keeps its own cache, for one thread.

        batch: rows. capacity: slots of each row's cache; needed where the cache is fixed, but for
        an engine, which has one.
        Raises: InputError if the artifact has no cache, or capacity does not fit it.
        """
        return Stream(self.manifest, self.runner, batch=batch, capacity=capacity)

    def close(self) -> None:
        """Release what the session holds; it cannot run afterwards."""
        self.runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def open_session(
    artifact: str | Path | Folder, runtime: str = "onnxruntime", *, threads: int | None = None
) -> Session:
    """Open an artifact on one runtime; it never falls back to another.

    artifact: its folder, or an open Artifact, whose own files are used and no others that lie there
    by now; an engine's as well. runtime: "onnxruntime" (CPU), "onnxruntime:cuda",
    "onnxruntime:tensorrt", "onnxruntime:tensorrt-rtx", "openvino" (CPU), "web" (onnxruntime-web in
    Chromium), "reference" (onnx's evaluator) or "eager" (PyTorch, with the weights in the file); of
    an engine these run its ONNX model, and "tensorrt" or "tensorrt-rtx" its plan. threads: that one
    call may use; all cores
    unless given. Sessions of one process on the same files and with the same options share their
    weights and threads.
    Raises: ArtifactError if the folder is not what its manifest says; UnavailableError if the
        runtime is not on this machine or cannot run this artifact.
    """
    chosen = find_runtime(runtime)
    if isinstance(artifact, Folder):
        return _session(artifact, chosen, threads)
    folder = Path(artifact)
    return steady(folder, lambda: _session(peek(folder), chosen, threads))


def _session(artifact: Folder, runtime: Runtime, threads: int | None) -> Session:
    reason = runtime.unavailable(artifact)
    if reason:
        raise UnavailableError(f"runtime {runtime.name!r}: {reason}")
    if threads is not None and threads < 1:
        raise InputError(f"`threads`={threads}: a call uses at least one.")
    return Session(artifact.manifest, runtime.open(artifact, threads))

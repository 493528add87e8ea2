"""onnxruntime, one runtime for each of its execution providers."""

import tempfile
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakValueDictionary

import numpy as np

from rope_export import gpu
from rope_export.arrays import is_torch
from rope_export.artifacts.contents import DATA, MODEL, Contents
from rope_export.errors import ArtifactError, RopeExportError, TensorError, UnavailableError
from rope_export.runtimes import heap
from rope_export.runtimes.base import Compute, NeedsPackages, Runner, allocate, older

if TYPE_CHECKING:
    from rope_export.arrays import Array
    from rope_export.artifacts.folder import Folder
    from rope_export.interface import Interface
    from rope_export.runtimes.base import Prepared

BFLOAT16 = 16
"""TensorProto.BFLOAT16: numpy has no such type, so onnxruntime gets the number."""

ERRORS_ONLY = 3
"""onnxruntime's log severity."""

HEAVY = {"Attention", "Gemm", "GroupQueryAttention", "MatMul", "RotaryEmbedding", "Softmax"}
"""Operators that must run where the user asked; shape arithmetic may stay on the CPU."""

IN_MEMORY = "add_external_initializers_from_files_in_memory"
"""The method of SessionOptions that takes files of the model as buffers, where there is one."""

OPENING = Lock()
_SHARED: "WeakValueDictionary[tuple[str, ...], Any]" = WeakValueDictionary()
"""onnxruntime's sessions that are open, by the hashes of their files and by options. Their run is
thread-safe, so all of ours on the same files use one: weights, packed weights and threads exist
once."""


class OnnxRuntime(NeedsPackages):
    """One execution provider. device: where torch tensors may lie besides the CPU. extra: what
    brings the provider."""

    needs: ClassVar[Mapping[str, str]] = {"onnxruntime": "cpu"}

    def __init__(self, name: str, provider: str, device: str, extra: str) -> None:
        self.name, self.provider, self.device = name, provider, device
        self.extra, self.on_gpu = extra, device != "cpu"

    def unavailable(self, artifact: "Folder | None" = None) -> str | None:
        reason = self.missing() or self.absent()
        if reason or artifact is None:
            return reason
        import onnxruntime

        manifest = artifact.manifest
        required = manifest.needs.get("onnxruntime")
        if required is not None and older(onnxruntime.__version__, required):
            return (
                f"lowering {manifest.lowering!r} needs onnxruntime {required} or newer; this is "
                f"{onnxruntime.__version__}. Upgrade it, or export with lowering 'standard'."
            )
        if manifest.dtype == "bfloat16" and self.device == "cpu":
            return "the CPU provider has no bfloat16 kernels; use runtime 'reference' or a GPU"
        return None

    def absent(self) -> str | None:
        """Why the provider cannot start in this onnxruntime, or nothing."""
        import onnxruntime

        if self.provider in onnxruntime.get_available_providers():
            return None
        return (
            f"this onnxruntime has no {self.provider}; in an environment without the package "
            f"'onnxruntime': pip install 'rope_export[{self.extra}]'"
        )

    def start(self, model: bytes | str, options: Any) -> Any:
        """onnxruntime's session on this provider, of a model's bytes or its path."""
        import onnxruntime

        where = {} if self.device == "cpu" else {"device_id": str(self.gpu_index())}
        return onnxruntime.InferenceSession(model, options, providers=[(self.provider, where)])

    def gpu_index(self) -> int:
        """Which GPU it computes on: the current one; of a provider of the CPU, 0."""
        current = None if self.device == "cpu" else gpu.here()
        return 0 if current is None else current.index

    def open(self, artifact: "Folder", threads: int | None = None) -> Runner:
        """Raises: UnavailableError if the provider did not start or left operators to another."""
        files = [file.sha256 for _, file in sorted(artifact.manifest.files.items())]
        key = (*files, self.provider, str(self.gpu_index()), str(threads))
        with OPENING:
            inner = _SHARED.get(key)
            if inner is not None:
                artifact.read()  # a folder that was damaged is refused, whoever has it open
            else:
                options = self.options()
                if threads is not None:
                    options.intra_op_num_threads = threads
                inner = _SHARED[key] = self.load(artifact, options)
        size = sum(file.bytes for file in artifact.manifest.files.values())
        return OnnxRuntimeRunner(artifact.manifest.interface, inner, self, size)

    def compute(self, model: bytes, threads: int | None = None) -> Compute:
        options = self.options()
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            session = self.start(model, options)
        except Exception as error:  # onnxruntime's own kinds derive from Exception alone
            raise ArtifactError(f"onnxruntime refuses a model: {first_line(error)}") from error
        names = [x.name for x in session.get_outputs()]

        def run(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            try:
                return dict(zip(names, session.run(names, inputs), strict=True))
            except Exception as error:
                raise RopeExportError(f"onnxruntime failed: {first_line(error)}") from error

        return run

    def options(self) -> Any:
        """onnxruntime's SessionOptions, as sessions are opened with."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = ERRORS_ONLY
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        return options

    def load(self, artifact: "Folder", options: Any) -> Any:
        """onnxruntime's InferenceSession of the artifact, which no other session shares.

        Raises: ArtifactError if onnxruntime refuses the model, or its files were changed.
        """
        files = artifact.read()
        try:
            with heap.in_huge_pages(len(files.model), len(files.data or b"")):
                session = self.start_from(files, options)
        except Exception as error:  # onnxruntime's own kinds derive from Exception alone
            reason = first_line(error)
            raise ArtifactError(f"{artifact.model}: onnxruntime refuses it: {reason}") from error
        files.check()
        return session

    def start_from(self, files: Contents, options: Any) -> Any:
        """onnxruntime's session of what was read, and of nothing that lies on the disk by now.

        Weights in a file of their own are copied out of the mapped file while the session is made:
        beside what a session from a path needs, that file's pages are resident meanwhile.
        """
        if files.data is None:
            return self.start(files.model, options)
        if not hasattr(options, IN_MEMORY):
            return self.start_from_copy(files, options)
        getattr(options, IN_MEMORY)([DATA], [files.data], [len(files.data)])
        return self.start(files.model, options)

    def start_from_copy(self, files: Contents, options: Any) -> Any:
        """onnxruntime's session by a folder of our own, for what finds weights by a path alone."""
        with tempfile.TemporaryDirectory(prefix="rope_export-") as folder:
            files.write(Path(folder))
            return self.start(str(Path(folder) / MODEL), options)


class OnnxRuntimeRunner(Runner):
    """Binds the caller's tensors and freshly allocated outputs by address: nothing is copied.

    assigned: how many nodes of each operator the graph left to each provider.
    """

    def __init__(
        self, interface: "Interface", inner: Any, runtime: OnnxRuntime, size: int = 0
    ) -> None:
        """size: bytes of the files.

        Raises: UnavailableError if the provider did not start, or left operators to another.
        """
        self._interface, self._inner, self._runtime = interface, inner, runtime
        self._size = size
        self._elements = {
            tensor.name: BFLOAT16 if tensor.dtype == "bfloat16" else np.dtype(tensor.dtype).type
            for tensor in (*interface.inputs, *interface.outputs)
        }
        self.assigned: dict[str, Counter[str]] = defaultdict(Counter)
        for subgraph in inner.get_provider_graph_assignment_info():
            self.assigned[subgraph.ep_name].update(node.op_type for node in subgraph.get_nodes())
        if inner.get_providers()[0] != runtime.provider:
            raise UnavailableError(
                f"runtime {runtime.name!r}: {runtime.provider} did not start; onnxruntime would "
                f"run on {inner.get_providers()[0]} instead."
            )
        elsewhere = {
            op: provider
            for provider, ops in self.assigned.items()
            for op in ops.keys() & HEAVY
            if provider != runtime.provider
        }
        for op, provider in sorted(elsewhere.items()):
            raise UnavailableError(
                f"runtime {runtime.name!r}: {runtime.provider} has no kernel for {op} here and "
                f"left it to {provider}; use another lowering or dtype."
            )

    def run(
        self, inputs: "Mapping[str, Array]", axes: Mapping[str, int], into: "Mapping[str, Array]"
    ) -> "dict[str, Array]":
        return self.prepare({}, into)(inputs, axes)

    def prepare(self, kept: "Mapping[str, Array]", into: "Mapping[str, Array]") -> "Prepared":
        binding = self._open().io_binding()
        for name, value in kept.items():
            self._bind(binding.bind_input, name, value)
        for name, value in into.items():
            self._bind(binding.bind_output, name, value)
        fresh = [tensor for tensor in self._interface.outputs if tensor.name not in into]

        def run(inputs: "Mapping[str, Array]", axes: Mapping[str, int]) -> "dict[str, Array]":
            # A contiguous copy must outlive the call.
            held: dict[str, Any] = {name: _contiguous(value) for name, value in inputs.items()}
            for name, value in held.items():
                self._bind(binding.bind_input, name, value)
            outputs = allocate(fresh, axes, inputs[self._interface.main_input]) | dict(into)
            for tensor in fresh:
                self._bind(binding.bind_output, tensor.name, outputs[tensor.name])
            if any(is_torch(v) and v.device.type == "cuda" for v in held.values()):
                import torch

                torch.cuda.current_stream().synchronize()  # the inputs are written
            inner = self._open()
            try:
                inner.run_with_iobinding(binding)
            except Exception as error:
                raise RopeExportError(f"onnxruntime failed: {first_line(error)}") from error
            binding.synchronize_outputs()
            return outputs

        return run

    def follow(
        self,
        inputs: "Mapping[str, Array]",
        caches: Mapping[str, Any],
        pairs: Mapping[str, str],
        axes: Mapping[str, int],
    ) -> "tuple[dict[str, Array], dict[str, Any]]":
        """numpy's arrays on the CPU become onnxruntime's own values, which it takes back as they
        are: binding a decoder's caches by address takes as long as a small decoder's step."""
        every = (*inputs.values(), *caches.values())
        if self._runtime.device != "cpu" or not all(map(_is_plain, every)):
            return super().follow(inputs, caches, pairs, axes)
        feeds = {n: x if is_value(x) else value_of(x) for n, x in {**inputs, **caches}.items()}
        after = set(pairs.values())
        others = [t.name for t in self._interface.outputs if t.name not in after]
        try:
            values = self._open().run_with_ort_values([*others, *pairs.values()], feeds)
        except RopeExportError:
            raise
        except Exception as error:
            raise RopeExportError(f"onnxruntime failed: {first_line(error)}") from error
        outputs = {n: x.numpy() for n, x in zip(others, values, strict=False)}
        return outputs, dict(zip(pairs, values[len(others) :], strict=True))

    def array(self, cache: Any) -> "Array":
        array: Array = cache.numpy() if is_value(cache) else cache
        return array

    def _open(self) -> Any:
        """Raises: RopeExportError if the session was closed."""
        if self._inner is None:
            raise RopeExportError("the session is closed.")
        return self._inner

    def _bind(self, bind: Any, name: str, value: "Array") -> None:
        if isinstance(value, np.ndarray):
            device, index, address = "cpu", 0, value.ctypes.data
        else:
            device, index = value.device.type, value.device.index or 0
            address = value.data_ptr()
            if device not in ("cpu", self._runtime.device):
                raise TensorError(
                    f"tensor {name!r} lies on {value.device}; runtime {self._runtime.name!r} "
                    f"takes tensors on cpu"
                    + (f" or {self._runtime.device}." if self._runtime.device != "cpu" else ".")
                )
        bind(name, device, index, self._elements[name], tuple(value.shape), address)

    def close(self) -> None:
        self._inner = None
        heap.give_back(self._size)


def is_value(value: object) -> bool:
    """Whether something is a value of onnxruntime's own."""
    return hasattr(value, "_get_c_value")


def value_of(array: np.ndarray) -> Any:
    """An array as a value of onnxruntime's own, which keeps it."""
    import onnxruntime

    return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))


def _is_plain(value: Any) -> bool:
    """Whether onnxruntime can make a value of its own of it: numpy has no bfloat16."""
    return is_value(value) or (isinstance(value, np.ndarray) and value.dtype.kind != "V")


def _contiguous(value: "Array") -> "Array":
    return np.ascontiguousarray(value) if isinstance(value, np.ndarray) else value.contiguous()


def first_line(error: Exception) -> str:
    """The first line of an error, or its kind where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


RUNTIMES = (
    OnnxRuntime("onnxruntime", "CPUExecutionProvider", "cpu", "cpu"),
    OnnxRuntime("onnxruntime:cuda", "CUDAExecutionProvider", "cuda", "gpu"),
)

"""What runs a plan, behind two thin protocols: an execution context, and the device it works on.

Tests hold others: a context that computes on the CPU from the shapes and addresses it is given.
"""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from rope_export import gpu
from rope_export.artifacts import swap
from rope_export.engines import build_cache, fusion
from rope_export.engines.module import Module
from rope_export.engines.plan import Engine, check_gpu, check_version, rebuild
from rope_export.errors import ArtifactError, RopeExportError, UnavailableError


class Context(Protocol):
    """An execution context, for one call at a time. `stream` is the address of a CUDA stream."""

    def use_profile(self, index: int, stream: int) -> None:
        """Take the sizes of another profile; shapes and addresses are to be set again."""

    def set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        """Set the shape of an input."""

    def bind(self, name: str, address: int) -> None:
        """Set the address of an input or an output; never 0."""

    def enqueue(self, stream: int) -> None:
        """Queue the work in the stream; it may run after this returns."""

    def capturable(self, stream: int) -> bool:
        """Whether the work as it is now can be recorded in a CUDA graph."""


class Device(Protocol):
    """A device. place: torch's name of it, such as "cuda:0". alignment: of addresses, in bytes."""

    place: str
    alignment: int

    def stream(self) -> int:
        """The address of the caller's current stream."""

    def mark(self) -> Any:
        """A point after all work that is queued in the current stream so far."""

    def wait(self, mark: Any) -> None:
        """Let the current stream wait for a point that `mark` returned."""

    def capture(self, work: Callable[[int], None]) -> Callable[[], None]:
        """Record what `work` queues in the stream that it takes; the result queues it again."""


class Cuda:
    """The CUDA device that is current when this is made, through torch."""

    alignment = 256  # what set_tensor_address asks for

    def __init__(self) -> None:
        import torch

        self.place = f"cuda:{torch.cuda.current_device()}"

    def stream(self) -> int:
        import torch

        return int(torch.cuda.current_stream(self.place).cuda_stream)

    def mark(self) -> Any:
        import torch

        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self.place))
        return event

    def wait(self, mark: Any) -> None:
        import torch

        torch.cuda.current_stream(self.place).wait_event(mark)

    def capture(self, work: Callable[[int], None]) -> Callable[[], None]:
        import torch

        graph = torch.cuda.CUDAGraph()
        # What other threads do to the GPU meanwhile is no part of it, and does not spoil it.
        with (
            torch.cuda.device(self.place),
            torch.cuda.graph(graph, capture_error_mode="thread_local"),
        ):
            work(self.stream())
        return graph.replay


class PlanContext:
    """TensorRT's own execution context; what it logs becomes the error."""

    def __init__(self, inner: Any, log: Any) -> None:
        self._inner, self._log = inner, log

    def use_profile(self, index: int, stream: int) -> None:
        self._check(self._inner.set_optimization_profile_async(index, stream), f"profile {index}")

    def set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        self._check(self._inner.set_input_shape(name, shape), f"{name} of shape {shape}")

    def bind(self, name: str, address: int) -> None:
        self._check(self._inner.set_tensor_address(name, address), f"the address of {name}")

    def enqueue(self, stream: int) -> None:
        self._check(self._inner.execute_async_v3(stream), "the call")

    def capturable(self, stream: int) -> bool:
        if not hasattr(self._inner, "is_stream_capturable"):
            return True
        return bool(self._inner.is_stream_capturable(stream))

    def _check(self, done: bool, what: str) -> None:
        if not done:
            reason = fusion.one_line(self._log.errors)
            self._log.errors.clear()
            raise RopeExportError(f"TensorRT refused {what}: {reason}")


class Plan:
    """A plan that is loaded onto the current GPU. `context` makes contexts for it."""

    def __init__(self, module: Module, engine: Engine, here: gpu.Gpu) -> None:
        """Raises: ArtifactError if the plan is for another version or GPU; RopeExportError with
        TensorRT's words if it does not load."""
        check_version(engine.path, engine.facts, module.version)
        check_gpu(engine.path, engine.facts, here)
        trt = module.trt
        self._log = fusion.logger(trt, False)
        self._runtime = trt.Runtime(self._log)
        plan = engine.read_plan()
        if module.has("Runtime.get_engine_validity"):
            _check_validity(trt, self._runtime, engine, plan, here)
        if engine.facts.options.version_compatible:
            self._runtime.engine_host_code_allowed = True  # ours, its sha256 is verified
        loaded = self._runtime.deserialize_cuda_engine(plan)
        if loaded is None:
            raise RopeExportError(
                f"{engine.plan}: TensorRT does not load it: {fusion.one_line(self._log.errors)}"
            )
        self._loaded = loaded
        _check_tensors(trt, loaded, engine)
        if engine.facts.options.weight_streaming:
            loaded.weight_streaming_budget_v2 = loaded.get_weight_streaming_automatic_budget()
        self._kernels: Path | None = None
        self._config = loaded.create_runtime_config()
        if hasattr(self._config, "create_runtime_cache"):
            self._kernels = _kernels_of(engine)
            self._cache = self._config.create_runtime_cache()
            if self._kernels is not None:
                with suppress(OSError):
                    self._cache.deserialize(self._kernels.read_bytes())
            self._config.set_runtime_cache(self._cache)

    def context(self) -> Context:
        context = self._loaded.create_execution_context(self._config)
        if context is None:
            raise RopeExportError(
                f"TensorRT makes no execution context: {fusion.one_line(self._log.errors)}"
            )
        return PlanContext(context, self._log)

    def close(self) -> None:
        """Keep the kernels that were compiled for this GPU, for the next time."""
        if self._kernels is not None:
            with suppress(OSError):  # they are compiled again where no folder can be written
                self._kernels.parent.mkdir(parents=True, exist_ok=True)
                swap.write(self._kernels, bytes(memoryview(self._cache.serialize())))
            self._kernels = None


def _kernels_of(engine: Engine) -> Path | None:
    """Where the kernels are kept that tensorrt-rtx compiles when it first runs a plan."""
    plans = build_cache.location()
    if plans is None:
        return None
    return plans.with_name("kernels") / str(engine.facts.files["engine.plan"].sha256)


def _check_validity(trt: Any, runtime: Any, engine: Engine, plan: bytes, here: gpu.Gpu) -> None:
    validity, bits = runtime.get_engine_validity(plan[: runtime.engine_header_size])
    if validity != trt.EngineValidity.INVALID:
        return
    why = trt.EngineInvalidityDiagnostics
    again = f"Build it again: {rebuild(engine.path, engine.facts)}"
    reasons = (
        (why.VERSION_MISMATCH, f"another version built it. {again}"),
        (why.UNSUPPORTED_CC, f"it has no kernels for {here}. {again}"),
        (why.MALFORMED_ENGINE, f"it is damaged. {again}"),
    )
    for bit, reason in reasons:
        if bits & int(bit):
            raise ArtifactError(f"{engine.plan}: is not valid here: {reason}")
    for bit, reason in (
        (why.OLD_CUDA_DRIVER, f"the NVIDIA driver is too old (CUDA {here.driver}); upgrade it"),
        (why.OLD_CUDA_RUNTIME, "the CUDA runtime is too old; upgrade it"),
        (why.INSUFFICIENT_GPU_MEMORY, f"{here} has too little memory for it"),
    ):
        if bits & int(bit):
            raise UnavailableError(f"{engine.plan}: {reason}.")
    raise RopeExportError(f"{engine.plan}: TensorRT calls it invalid (diagnostics {bits}).")


def _check_tensors(trt: Any, loaded: Any, engine: Engine) -> None:
    """Raises: RopeExportError if the plan's tensors are not those of the manifest, or it does not
    write a fixed cache where it reads it."""
    facts = engine.facts
    names = {loaded.get_tensor_name(at) for at in range(loaded.num_io_tensors)}
    listed = {tensor.name for tensor in (*facts.inputs, *facts.outputs)}
    if names != listed:
        raise RopeExportError(
            f"{engine.plan}: has tensors {sorted(names)}; its manifest says {sorted(listed)}."
        )
    interface = engine.manifest.interface
    if interface.cache == "fixed" and hasattr(loaded, "get_aliased_input_tensor"):
        for pair in interface.caches:
            aliased = loaded.get_aliased_input_tensor(pair.output)
            if aliased != pair.input:
                raise RopeExportError(
                    f"{engine.plan}: writes {pair.output} beside {aliased or 'no input'}, not in "
                    f"place."
                )

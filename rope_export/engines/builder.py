"""One run of TensorRT's builder: an ONNX model and an order in, a plan and what it became out.

The builder returns nothing on failure and raises nothing; it tells its logger. Its last errors
become the error here.
"""

import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rope_export.artifacts import swap
from rope_export.artifacts.contents import MODEL
from rope_export.engines import fusion, network, static
from rope_export.engines.build_cache import Built
from rope_export.engines.module import Module
from rope_export.engines.network import NetworkFacts
from rope_export.engines.plan import Engine, Options, fixed_tensors
from rope_export.engines.profiles import Profile, sizes_of
from rope_export.errors import InputError, RopeExportError
from rope_export.interface import TensorType
from rope_export.typed_json import plain

Progress = Callable[[str], None]

REMEDIES = {
    "workspace": "give a larger --workspace, or none",
    "refit": "leave out --refit, or build on a machine with a GPU",
    "version_compatible": "leave out --version-compatible: tensorrt-rtx's packages have no lean "
    "runtime",
    "weight_streaming": "leave out --weight-streaming",
}
"""What helps where a build with an option fails, by the option."""

WITHOUT_GPU = re.compile(r"\(cudaError \d+: CUDA driver version is insufficient")
"""What the builder logs on a machine without a GPU before it goes on."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is to be built. inputs, outputs: of the artifact. compute_capabilities: to build for;
    none where the module builds for the GPU that is here. timing_cache: a file to read and write.
    """

    model: Path
    dtype: str
    inputs: tuple[TensorType, ...]
    outputs: tuple[TensorType, ...]
    sizes: Mapping[str, int]
    profiles: tuple[Profile, ...]
    compute_capabilities: tuple[str, ...]
    options: Options
    timing_cache: Path | None

    @property
    def tensors(self) -> tuple[tuple[TensorType, ...], tuple[TensorType, ...]]:
        """Inputs and outputs as the plan has them."""
        return fixed_tensors(self.inputs, self.sizes), fixed_tensors(self.outputs, self.sizes)


def build(module: Module, order: Order, progress: Progress) -> Built:
    """Raises: InputError for a model that TensorRT computes otherwise; RopeExportError with the
    builder's own words for what it cannot build."""
    trt, log = module.trt, fusion.logger(module.trt, True)
    with tempfile.TemporaryDirectory(prefix="rope_export-") as folder:
        model = _sized(order, Path(folder))
        progress("parsing")
        builder = trt.Builder(log)
        parsed = _parsed(module, builder, model, order, log)
        facts, names = network.facts(trt, parsed), network.names(trt, parsed)
        config = _config(module, builder, order)
        progress("building")
        log.errors.clear()  # those logged while it looked for a GPU
        plan = builder.build_serialized_network(parsed, config)
    if plan is None:
        raise _failed(log.errors, order)
    if order.timing_cache is not None:
        cache = bytes(memoryview(config.get_timing_cache().serialize()))
        swap.write(order.timing_cache, cache)
    report = fusion.read_fusion(log.lines, facts, order.dtype, names)
    return Built(plan=bytes(memoryview(plan)), network=facts, fusion=report)


def again(module: Module, engine: Engine) -> NetworkFacts:
    """What an engine's model is parsed to now, as its manifest has it.

    Raises: as `build`.
    """
    manifest, trt = engine.manifest, module.trt
    order = Order(
        model=engine.model,
        dtype=manifest.dtype,
        inputs=manifest.inputs,
        outputs=manifest.outputs,
        sizes=sizes_of(engine.facts.profiles),
        profiles=engine.facts.profiles,
        compute_capabilities=engine.facts.compute_capabilities,
        options=engine.facts.options,
        timing_cache=None,
    )
    log = fusion.logger(trt, False)
    with tempfile.TemporaryDirectory(prefix="rope_export-") as folder:
        files = engine.read()
        network.refuse(engine.model, files.model)
        private = Path(folder) / "model"
        private.mkdir()
        files.write(private)
        model = _sized(replace(order, model=private / MODEL), Path(folder))
        parsed = _parsed(module, trt.Builder(log), model, order, log)
        return network.facts(trt, parsed)


def _sized(order: Order, folder: Path) -> Path:
    """The model with its sizes fixed, in the folder; the model itself where there are none."""
    if not order.sizes:
        return order.model
    model = folder / order.model.name
    static.fix_axes(order.model, order.sizes, model)
    return model


def _parsed(module: Module, builder: Any, model: Path, order: Order, log: Any) -> Any:
    parsed = builder.create_network(_strongly_typed(module))
    network.parse(module.trt, parsed, model, log)
    _check_tensors(module.trt, parsed, order)
    return parsed


def _strongly_typed(module: Module) -> int:
    """The flag that keeps the file's types: no layer is computed in another. In 10.x it is asked
    for, in 11 there is no other way, and the flag stays without effect."""
    if not module.has("NetworkDefinitionCreationFlag.STRONGLY_TYPED"):
        return 0
    return 1 << int(module.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def _config(module: Module, builder: Any, order: Order) -> Any:
    trt, options = module.trt, order.options
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # else the log names no kernels
    for enabled, flag in _flags(trt, options):
        config.set_flag(flag) if enabled else config.clear_flag(flag)
    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if order.timing_cache is not None:
        before = order.timing_cache.read_bytes() if order.timing_cache.exists() else b""
        cache = config.create_timing_cache(before)
        if cache is None or not config.set_timing_cache(cache, False):
            raise InputError(
                f"--timing-cache {order.timing_cache}: is no timing cache of this TensorRT for "
                f"this GPU, and would be lost. Give another file."
            )
    if order.compute_capabilities:
        capabilities = module.capabilities()
        config.num_compute_capabilities = len(order.compute_capabilities)
        for at, capability in enumerate(order.compute_capabilities):
            config.set_compute_capability(capabilities[capability], at)
    for profile in order.profiles:
        _add_profile(builder, config, profile, order)
    return config


def _flags(trt: Any, options: Options) -> Iterator[tuple[bool, Any]]:
    """Each flag and whether it is set: TF32 is on unless it is cleared."""
    yield options.tf32, trt.BuilderFlag.TF32
    yield options.version_compatible, trt.BuilderFlag.VERSION_COMPATIBLE
    yield options.weight_streaming, trt.BuilderFlag.WEIGHT_STREAMING
    yield options.refit, trt.BuilderFlag.REFIT


def _add_profile(builder: Any, config: Any, profile: Profile, order: Order) -> None:
    shaped = builder.create_optimization_profile()
    for tensor in order.tensors[0]:
        shapes = profile.shapes(tensor)
        shaped.set_shape(tensor.name, *shapes)
        if tuple(map(tuple, shaped.get_shape(tensor.name))) != shapes:
            raise RopeExportError(f"TensorRT did not take profile {profile} for {tensor.name}.")
    if config.add_optimization_profile(shaped) < 0:
        raise RopeExportError(f"TensorRT did not take profile {profile}.")


def _check_tensors(trt: Any, parsed: Any, order: Order) -> None:
    """Raises: RopeExportError if the parsed network's tensors are not those of the artifact."""
    ends = (
        [parsed.get_input(at) for at in range(parsed.num_inputs)],
        [parsed.get_output(at) for at in range(parsed.num_outputs)],
    )
    for tensors, values in zip(order.tensors, ends, strict=True):
        expected = {t.name: (t.dtype, _dimensions(t)) for t in tensors}
        actual = {t.name: (type_name(trt, t.dtype), tuple(t.shape)) for t in values}
        if actual.keys() != expected.keys():
            raise RopeExportError(
                f"TensorRT parsed {sorted(actual)}; the artifact has {sorted(expected)}."
            )
        for name, (dtype, shape) in expected.items():
            parsed_dtype, parsed_shape = actual[name]
            same = len(shape) == len(parsed_shape) and all(
                a == b or -1 in (a, b) for a, b in zip(shape, parsed_shape, strict=True)
            )
            if dtype != parsed_dtype or not same:
                raise RopeExportError(
                    f"TensorRT parsed {name} as {parsed_dtype}{parsed_shape}; the artifact has "
                    f"{dtype}{shape}."
                )


def _dimensions(tensor: TensorType) -> tuple[int, ...]:
    return tuple(axis if isinstance(axis, int) else -1 for axis in tensor.shape)


def type_name(trt: Any, dtype: Any) -> str:
    """TensorRT's dtype as the manifest spells it."""
    names = {
        trt.DataType.FLOAT: "float32",
        trt.DataType.HALF: "float16",
        trt.DataType.BF16: "bfloat16",
        trt.DataType.INT64: "int64",
        trt.DataType.INT32: "int32",
        trt.DataType.BOOL: "bool",
    }
    return names.get(dtype, str(dtype))


def _failed(errors: Sequence[str], order: Order) -> RopeExportError:
    """The builder's own words in one line, and what helps where an option was given."""
    reason = fusion.one_line([e for e in errors if not WITHOUT_GPU.search(e)] or errors)
    options = plain(order.options)
    ways = [way for name, way in REMEDIES.items() if options[name]]
    kind = InputError if ways else RopeExportError
    remedy = f" Remedy: {'; '.join(ways)}." if ways else ""
    return kind(f"TensorRT cannot build it: {reason}{remedy}")

"""Builds a TensorRT engine from an artifact: checks what was asked for, then builds, or takes the
plan from the build cache, and writes the engine's folder."""

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rope_export import gpu, paths
from rope_export.artifacts.folder import Folder, model_hashes, open_folder
from rope_export.artifacts.saving import check_target
from rope_export.engines import build_cache, plan
from rope_export.engines import module as modules
from rope_export.engines.module import Module
from rope_export.engines.plan import Engine, EngineManifest, Options
from rope_export.engines.profiles import profiles_for, sizes_of
from rope_export.errors import InputError, UnavailableError
from rope_export.typed_json import plain
from rope_export.version import VERSION

if TYPE_CHECKING:
    from rope_export.engines.builder import Order

Progress = Callable[[str], None]

DEFAULT_CAPABILITIES = ("8.0", "8.6", "8.9", "12.0", "12.1")
"""Compute capabilities that tensorrt-rtx builds for by default: Ampere, Ada and Blackwell."""

LEVELS = range(6)
"""Builder optimization levels; TensorRT clamps what is above without a word."""


def build_engine(
    artifact: str | Path | Folder,
    *,
    out: str | Path,
    profiles: Sequence[str] = (),
    engine: str | None = None,
    compute_capabilities: Sequence[str] = (),
    workspace: int | None = None,
    optimization_level: int | None = None,
    tf32: bool = False,
    version_compatible: bool = False,
    weight_streaming: bool = False,
    refit: bool = False,
    timing_cache: str | Path | None = None,
    require_fused: bool = False,
    cache: str | Path | bool = True,
    progress: Progress = lambda step: None,
) -> Engine:
    """Build a TensorRT engine from an artifact, replacing the one that is at `out`.

    artifact: its folder, or that of an engine, which is then built anew. out: the engine's folder.
    profiles: sizes to build for, such as "batch=1:1:8,sequence=1:128:2048,past=0:512:4096"; one for
    prompts and one for decoding unless given. engine: "tensorrt" or "tensorrt-rtx"; the one that
    can build here unless given. compute_capabilities: of the GPUs to build for, such as "8.9", with
    tensorrt-rtx; tensorrt builds for the one that is here.

    workspace: bytes that layers may use beside their tensors; all unless given.
    optimization_level: 0 builds fastest, 5 searches longest; 3 unless given. tf32: let float32
    products be computed in TF32, with 10 bits of mantissa. version_compatible: a plan that newer
    versions of the same major one run as well. weight_streaming: let weights lie in the host's
    memory. refit: let weights be exchanged later; needs a GPU. timing_cache: a file of measured
    kernels, read and written; only with tensorrt. require_fused: refuse an engine whose attention
    is not fused. cache: the folder of plans built before; the user's own unless given, none for
    False. progress: called with the name of each step.

    Returns: the engine. Its ONNX model and structure are proven by `verify`, its numbers once that
    ran on a machine with the GPU.
    Raises: InputError for what is wrong, not supported, or not fused; UnavailableError if no module
        can build here; RopeExportError with the builder's words. Nothing is written then.
    """
    from rope_export.engines import network
    from rope_export.engines.builder import Order

    out, opened = Path(out), open_folder(artifact)
    check_target(out, Engine)
    source = opened.artifact
    chosen = profiles_for(source.manifest, profiles)
    options = Options(
        workspace=workspace,
        optimization_level=optimization_level,
        tf32=tf32,
        version_compatible=version_compatible,
        weight_streaming=weight_streaming,
        refit=refit,
    )
    _check_options(options)
    module = modules.find(engine)
    capabilities = _capabilities(module, compute_capabilities)
    timings = None if timing_cache is None else _timing_cache(module, Path(timing_cache))
    reason = module.cannot_build()
    if reason:
        raise UnavailableError(
            f"`engine`={module.engine}: {reason}; use `engine`=tensorrt-rtx, which builds without."
        )
    here = None if module.ahead_of_time else gpu.here()
    if refit and gpu.here() is None:
        raise UnavailableError(
            f"`refit`=True: the builder needs a GPU for it, and {gpu.missing()}."
        )
    folder = _cache_folder(cache)
    with tempfile.TemporaryDirectory(prefix="rope_export-") as private:
        # What is built from and kept is this copy, whatever happens to the folder meanwhile.
        copied = source.copied(Path(private))
        _check_optional(source)
        network.refuse(source.model, copied.model.read_bytes())
        order = Order(
            model=copied.model,
            dtype=source.manifest.dtype,
            inputs=source.manifest.inputs,
            outputs=source.manifest.outputs,
            sizes=sizes_of(chosen),
            profiles=chosen,
            compute_capabilities=capabilities,
            options=options,
            timing_cache=timings,
        )
        built = _built(module, order, model_hashes(source), here, folder, progress)
        if require_fused and not built.fusion.fused:
            raise InputError(
                f"{source.path}: attention is not fused: {built.fusion.reason}. Remedy: "
                f"{built.fusion.remedy}, or build without `require_fused`."
            )
        inputs, outputs = order.tensors
        facts = EngineManifest(
            engine=module.engine,  # type: ignore[arg-type]  # one of PACKAGES
            version=module.version,
            compute_capabilities=capabilities or (here.capability if here else "",),
            gpu=None if here is None else here.name,
            ranges=tuple(profile.axes for profile in chosen),
            options=options,
            inputs=inputs,
            outputs=outputs,
            network=built.network,
            fusion=built.fusion,
            model=model_hashes(source),
        )
        progress("writing")
        return plan.save(out, copied, facts, built.plan)


def _check_optional(source: Folder) -> None:
    """Raises: InputError for a model with an input that may be left out, which no plan has."""
    for name in source.manifest.interface.optional:
        raise InputError(
            f"{source.path}: {name} may be left out of a call, which TensorRT has no form for; "
            f"export with lowering 'tensorrt', which always takes it."
        )


def _check_options(options: Options) -> None:
    if options.workspace is not None and options.workspace < 1:
        raise InputError(f"`workspace`={options.workspace}: give at least one byte.")
    level = options.optimization_level
    if level is not None and level not in LEVELS:
        raise InputError(f"`optimization_level`={level}: it is 0 to {LEVELS[-1]}.")


def _capabilities(module: Module, requested: Sequence[str]) -> tuple[str, ...]:
    """Compute capabilities to build for, ascending; none where the GPU that is here decides."""
    supported = module.capabilities()
    if not supported:
        if requested:
            raise InputError(
                f"`compute_capabilities`={requested[0]}: {module.engine} builds for the GPU "
                f"that is here alone; use `engine`=tensorrt-rtx to build ahead of time."
            )
        return ()
    for name in requested:
        if name not in supported:
            raise InputError(
                f"`compute_capabilities`={name}: {module.engine} {module.version} builds for "
                f"{', '.join(supported)}."
            )
    return tuple(name for name in supported if name in (requested or DEFAULT_CAPABILITIES))


def _timing_cache(module: Module, path: Path) -> Path:
    if module.ahead_of_time:
        raise InputError(
            f"`timing_cache`={path}: {module.engine} measures no kernels while it builds; leave it "
            f"out."
        )
    with paths.named(path):
        real = Path(os.path.realpath(path))  # a link stays one: what it leads to is written
        if (real.exists() and not real.is_file()) or not real.parent.is_dir():
            raise InputError(f"`timing_cache`={path}: is no file, or its folder is not there.")
    return real


def _cache_folder(cache: str | Path | bool) -> Path | None:
    """Raises: InputError if the folder that was asked for is a file."""
    if cache is False:
        return None
    if cache is True:
        return build_cache.location()
    folder = paths.readable(cache)
    if os.path.lexists(folder) and not folder.is_dir():
        raise InputError(f"{folder}: is a file; the build cache is a folder. Give another.")
    return folder


def _built(
    module: Module,
    order: "Order",
    model: dict[str, str],
    here: gpu.Gpu | None,
    folder: Path | None,
    progress: Progress,
) -> build_cache.Built:
    """The plan that the builder makes of the order, or made of the same one before."""
    from rope_export.engines import builder

    name = build_cache.key(
        {
            "rope_export": [VERSION, build_cache.code()],
            "model": model,
            "engine": module.engine,
            "version": module.version,
            "gpu": None if here is None else str(here) + here.driver,
            "compute_capabilities": order.compute_capabilities,
            "profiles": [plain(profile.axes) for profile in order.profiles],
            "options": plain(order.options),
        }
    )
    cached = None if folder is None else build_cache.get(folder, name)
    if cached is not None:
        return cached
    built = builder.build(module, order, progress)
    if folder is not None:
        try:
            build_cache.put(folder, name, built)
        except OSError as error:  # the plan is what was asked for; keeping it is a convenience
            progress(f"the build cache {folder} cannot be written ({error.strerror}): going on")
    return built

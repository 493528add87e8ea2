"""rope-export build: a TensorRT engine from an artifact."""

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rope_export.cli import output
from rope_export.errors import InputError
from rope_export.typed_json import plain

if TYPE_CHECKING:
    from rope_export.engines import Engine
    from rope_export.engines.fusion import Fusion
    from rope_export.engines.network import NetworkFacts

LAID_OUT = r"(_myl\d+)?_\d+$"
"""The end of a kernel's name, which numbers it."""

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


def build_plan(
    path: Annotated[Path, typer.Argument(metavar="DIR", help="The artifact's folder.")],
    out: Annotated[Path, typer.Option(metavar="ENGINE_DIR", help="The engine's folder.")],
    profile: Annotated[
        list[str] | None,
        typer.Option(
            metavar="AXES",
            help="Sizes to build for, minimum:optimum:maximum of each axis, such as "
            "batch=1:1:8,sequence=1:128:2048,past=0:512:4096; may be repeated.",
        ),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(help="tensorrt or tensorrt-rtx; by default the one that can build here."),
    ] = None,
    compute_capability: Annotated[
        list[str] | None,
        typer.Option(
            metavar="N.N",
            help="Compute capability of a GPU to build for, such as 8.9; may be repeated.",
        ),
    ] = None,
    require_fused: Annotated[
        bool, typer.Option("--require-fused", help="Fail where attention is not fused.")
    ] = False,
    workspace: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="Memory that layers may use beside their tensors, such as 512M."
        ),
    ] = None,
    optimization_level: Annotated[
        int | None, typer.Option(help="0 builds fastest, 5 searches longest; 3 unless given.")
    ] = None,
    tf32: Annotated[
        bool, typer.Option("--tf32", help="Allow TF32 products, which have 10 bits of mantissa.")
    ] = False,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="For newer minor versions as well.")
    ] = False,
    weight_streaming: Annotated[
        bool, typer.Option("--weight-streaming", help="Let weights stay in host memory.")
    ] = False,
    refit: Annotated[
        bool, typer.Option("--refit", help="Let weights be replaced later; needs a GPU.")
    ] = False,
    timing_cache: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Measured kernels, read and written; tensorrt only."),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder of plans that were built before; by default the user's cache.",
        ),
    ] = None,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Build anew, even what was built before.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Build a TensorRT engine from an artifact, and report whether its attention was fused."""
    if no_cache and cache is not None:
        raise InputError(f"--no-cache and --cache {cache}: give one of them.")
    with output.progress() as step, output.native_silenced():
        from rope_export.engines import build_engine

        built = build_engine(
            path,
            out=out,
            profiles=tuple(profile or ()),
            engine=engine,
            compute_capabilities=tuple(compute_capability or ()),
            workspace=None if workspace is None else size(workspace),
            optimization_level=optimization_level,
            tf32=tf32,
            version_compatible=version_compatible,
            weight_streaming=weight_streaming,
            refit=refit,
            timing_cache=timing_cache,
            require_fused=require_fused,
            cache=not no_cache if cache is None else cache,
            progress=lambda name: step(name, None),
        )
    if as_json:
        output.print_json({"engine": str(built.path), **plain(built.facts)})
        return 0
    for line in summary(built):
        output.out().print(line, soft_wrap=True)
    return 0


def size(text: str) -> int:
    """Bytes, from words such as 512M.

    Raises: InputError for what is none.
    """
    number, unit = (text[:-1], text[-1].upper()) if text[-1:].isalpha() else (text, "")
    if unit not in UNITS or not (number.isascii() and number.isdigit()):
        raise InputError(f"--workspace {text}: write bytes, or such as 512M or 2G.")
    return int(number) * UNITS[unit]


def summary(engine: "Engine") -> list[str]:
    """An engine in a few lines."""
    facts = engine.facts
    plan = facts.files["engine.plan"].bytes / 1e6
    return [
        f"{engine.path}: {facts.engine} {facts.version}, compute capability "
        f"{', '.join(facts.compute_capabilities)}, {engine.manifest.dtype}, cache "
        f"{engine.manifest.cache}, {plan:.1f} MB",
        *(f"profile {at} ({p.kind}): {p}" for at, p in enumerate(facts.profiles)),
        fused(facts.network, facts.fusion),
        f"numbers unverified: prove it with rope-export verify {engine.path}",
    ]


def fused(network: "NetworkFacts", fusion: "Fusion") -> str:
    """Whether attention was fused, and the layers of the network, in one line."""
    counts = (
        f"{network.rotary} rotary, {network.attention} attention, "
        f"{network.kv_cache_updates} KV-cache updates"
    )
    if fusion.fused:
        kernels = Counter(re.sub(LAID_OUT, "", kernel) for kernel in fusion.kernels)
        told = ", ".join(f"{count} {kernel}" for kernel, count in sorted(kernels.items()))
        return f"attention fused ({told}); {counts}"
    return f"attention NOT fused: {fusion.reason}; remedy: {fusion.remedy}; {counts}"

"""rope-export doctor: what this machine can run, and what to install for the rest."""

import importlib.metadata
import platform
from typing import Annotated

import typer
from rich.table import Table

from rope_export import gpu
from rope_export.cli import output
from rope_export.engines.module import builders
from rope_export.runtimes import all_runtimes
from rope_export.version import VERSION

PACKAGES = {
    "torch": "export",
    "onnx": "export",
    "onnxscript": "export",
    "safetensors": "export",
    "onnxruntime": "cpu",
    "onnxruntime-gpu": "gpu",
    "openvino": "openvino",
    "playwright": "web",
    "huggingface_hub": "hf",
    "transformers": "hf",
    "tensorrt": "tensorrt",
    "tensorrt-rtx": "rtx",
}
"""What each extra brings that a command may ask for."""


def show_machine(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Show which runtimes work on this machine, and what to install for the others."""
    available = {name: runtime.unavailable() for name, runtime in all_runtimes().items()}
    packages = {name: _version(name) for name in PACKAGES}
    device = str(gpu.here() or f"none: {gpu.missing()}")
    if as_json:
        python = platform.python_version()
        runs = [{"runtime": n, "available": r is None, "reason": r} for n, r in available.items()]
        builds = [{"engine": n, "builds": r is None, "reason": r} for n, r in builders().items()]
        facts = {"rope_export": VERSION, "python": python, "gpu": device}
        output.print_json({**facts, "packages": packages, "runtimes": runs, "engines": builds})
        return 0
    grid = Table(title=f"rope_export {VERSION}, Python {platform.python_version()}")
    for name in ("what", "version or state", "to get it"):
        grid.add_column(name, overflow="fold")
    for name, version in packages.items():
        way = "" if version else f"pip install 'rope_export[{PACKAGES[name]}]'"
        grid.add_row(f"package {name}", version or "not installed", way)
    for name, reason in available.items():
        grid.add_row(f"runtime {name}", "works" if reason is None else "not here", reason or "")
    for name, reason in builders().items():
        state = "builds" if reason is None else "not here"
        grid.add_row(f"engine {name}", state, reason or "")
    grid.add_row("GPU", device, "")
    both = packages["onnxruntime"] and packages["onnxruntime-gpu"]
    if both:
        grid.add_row("conflict", "onnxruntime and onnxruntime-gpu", "uninstall one of the two")
    output.out().print(grid)
    return 0


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None

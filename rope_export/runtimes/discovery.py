"""Finds the runtimes: each file of this folder lists its own in RUNTIMES."""

from rope_export.discovery import modules_of
from rope_export.errors import UnavailableError
from rope_export.runtimes.base import Runtime


def all_runtimes() -> dict[str, Runtime]:
    """Every runtime by its name."""
    return {
        runtime.name: runtime
        for module in modules_of(__package__)
        for runtime in getattr(module, "RUNTIMES", ())
    }


def find_runtime(name: str) -> Runtime:
    """The runtime called `name`.

    Raises: UnavailableError naming those that exist.
    """
    runtimes = all_runtimes()
    if name not in runtimes:
        raise UnavailableError(f"runtime {name!r} does not exist; known: {', '.join(runtimes)}.")
    return runtimes[name]

"""The machine, Python and packages that figures were measured with."""

import os
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

from rope_export.version import VERSION


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions by name: of this package, of Python, and of those packages that are installed."""
    installed = {"rope_export": VERSION, "python": platform.python_version()}
    for package in packages:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            continue
    return installed


def cores() -> int:
    """Cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def cpu_name() -> str:
    """The processor, as it calls itself."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()

"""The machine that a benchmark ran on, and its background load."""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from rope_export.bench.roofline import Limits
from rope_export.environment import cpu_name, versions

QUIET = 0.05
"""Share of the cores that other processes may take before figures are not to be believed."""

PACKAGES = ("torch", "onnxruntime", "onnxruntime-gpu", "numpy")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The machine that a benchmark ran on. cores: that this process may use. background_cores: that
    other processes used while calls were timed, none where the system does not tell. date: of the
    end, in UTC. versions: of Python and packages by name."""

    cpu: str
    cores: int
    limits: Limits
    background_cores: float | None
    date: str
    versions: Mapping[str, str]

    @property
    def quiet(self) -> bool:
        """Whether other processes left the cores alone, as far as is known."""
        return self.background_cores is None or self.background_cores <= QUIET * self.cores

    @classmethod
    def here(cls, cores: int, limits: Limits, background_cores: float | None) -> "Machine":
        return cls(
            cpu=cpu_name(),
            cores=cores,
            limits=limits,
            background_cores=background_cores,
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            versions=versions(PACKAGES),
        )


class BackgroundLoad:
    """Counts the processor time that other processes take while it watches."""

    def __init__(self) -> None:
        self._others = self._elapsed = 0.0

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Watch for as long as the block lasts, in addition to earlier ones."""
        before = _processor_seconds(), time.process_time(), time.monotonic()
        yield
        after = _processor_seconds(), time.process_time(), time.monotonic()
        if before[0] is not None and after[0] is not None:
            own = after[1] - before[1]
            self._others += max(0.0, after[0] - before[0] - own)
            self._elapsed += after[2] - before[2]

    @property
    def cores(self) -> float | None:
        """Cores that other processes took on average; none where that is not known."""
        return self._others / self._elapsed if self._elapsed else None


def _processor_seconds() -> float | None:
    """What all processes of the machine have used together.

    Source: Linux, Documentation/filesystems/proc.rst, section 1.7.
    """
    try:
        with open("/proc/stat", encoding="ascii") as file:
            user, nice, system, _idle, _wait, irq, softirq, *_ = map(
                int, file.readline().split()[1:]
            )
        return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, AttributeError):
        return None

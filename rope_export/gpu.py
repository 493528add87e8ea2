"""The current GPU, asked of its driver: neither torch nor CUDA's own packages are needed.

Current is what the calling thread computes on: torch's current device where torch uses CUDA, else
the device of the thread's CUDA context, else the first one that CUDA_VISIBLE_DEVICES leaves.
"""

import ctypes
import functools
import sys
from dataclasses import dataclass
from typing import Any

LIBRARIES = ("libcuda.so.1", "nvcuda.dll")
MAJOR, MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR, cuda.h."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """The current GPU. index: among those that are visible. capability: such as "8.9". driver: the
    newest CUDA version it supports, such as "13.0"."""

    name: str
    capability: str
    driver: str
    index: int = 0

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.capability})"


def missing() -> str | None:
    """Why no GPU can be used here, or nothing."""
    answer = _ask()
    return answer if isinstance(answer, str) else None


def here() -> Gpu | None:
    """The current GPU, if there is one."""
    answer = _ask()
    return None if isinstance(answer, str) else answer


def _ask() -> Gpu | str:
    """The current GPU, or why there is none."""
    driver = _driver()
    if driver is None:
        return f"there is no NVIDIA driver ({LIBRARIES[0]}) on this machine"
    count = ctypes.c_int()
    status = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if status or not count.value:
        return f"the NVIDIA driver finds no GPU (CUDA error {status})"
    index = _current(driver, count.value)
    device = ctypes.c_int()
    status = driver.cuDeviceGet(ctypes.byref(device), index)
    if status:
        return f"the NVIDIA driver does not give GPU {index} (CUDA error {status})"
    version, major, minor = (ctypes.c_int() for _ in range(3))
    name = ctypes.create_string_buffer(256)
    driver.cuDeviceGetName(name, len(name), device)
    driver.cuDeviceGetAttribute(ctypes.byref(major), MAJOR, device)
    driver.cuDeviceGetAttribute(ctypes.byref(minor), MINOR, device)
    driver.cuDriverGetVersion(ctypes.byref(version))
    return Gpu(
        name=name.value.decode(errors="replace"),
        capability=f"{major.value}.{minor.value}",
        driver=f"{version.value // 1000}.{version.value % 1000 // 10}",
        index=index,
    )


def _current(driver: Any, count: int) -> int:
    """The index of the current GPU among the `count` that are visible."""
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    if cuda is not None and cuda.is_initialized():
        return int(cuda.current_device())
    device, other = ctypes.c_int(), ctypes.c_int()
    if driver.cuCtxGetDevice(ctypes.byref(device)):
        return 0  # the thread has no context
    for index in range(count):
        if driver.cuDeviceGet(ctypes.byref(other), index) == 0 and other.value == device.value:
            return index
    return 0


@functools.cache
def _driver() -> Any:
    """The driver's library, or nothing."""
    for library in LIBRARIES:
        try:
            return ctypes.CDLL(library)
        except OSError:
            continue
    return None

"""The GPU that is here, asked of its driver: neither torch nor CUDA's own packages are needed."""

import ctypes
import functools
from dataclasses import dataclass

LIBRARIES = ("libcuda.so.1", "nvcuda.dll")
MAJOR, MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR, cuda.h."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """The first GPU. capability: such as "8.9". driver: the CUDA version it speaks, such as
    "13.0"."""

    name: str
    capability: str
    driver: str

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.capability})"


def missing() -> str | None:
    """Why no GPU can be used here, or nothing."""
    found = _look()
    return found if isinstance(found, str) else None


def here() -> Gpu | None:
    """The GPU that is here, if there is one."""
    found = _look()
    return None if isinstance(found, str) else found


@functools.cache
def _look() -> "Gpu | str":
    driver = _driver()
    if driver is None:
        return f"there is no NVIDIA driver ({LIBRARIES[0]}) on this machine"
    number, version, major, minor = (ctypes.c_int() for _ in range(4))
    status = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(number))
    if status or not number.value:
        return f"the NVIDIA driver finds no GPU (CUDA error {status})"
    name = ctypes.create_string_buffer(256)
    driver.cuDeviceGetName(name, len(name), 0)
    driver.cuDeviceGetAttribute(ctypes.byref(major), MAJOR, 0)
    driver.cuDeviceGetAttribute(ctypes.byref(minor), MINOR, 0)
    driver.cuDriverGetVersion(ctypes.byref(version))
    return Gpu(
        name=name.value.decode(errors="replace"),
        capability=f"{major.value}.{minor.value}",
        driver=f"{version.value // 1000}.{version.value % 1000 // 10}",
    )


def _driver() -> ctypes.CDLL | None:
    for library in LIBRARIES:
        try:
            return ctypes.CDLL(library)
        except OSError:
            continue
    return None

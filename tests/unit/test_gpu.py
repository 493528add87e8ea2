"""Which GPU is asked: the current one. The driver is a fake one where there is none."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from rope_export import gpu
from rope_export.runtimes import find_runtime

NO_CONTEXT = 201
"""CUDA_ERROR_INVALID_CONTEXT, cuda.h."""

NAMES = ("NVIDIA A100", "NVIDIA GeForce RTX 4090", "NVIDIA H100")
CAPABILITIES = ((8, 0), (8, 9), (9, 0))


class FakeDriver:
    """The functions of libcuda that are asked; devices are numbers that are no indices.

    context: the index of the device of the thread's context, if it has one.
    """

    def __init__(self, count: int = 3, context: int | None = None, init: int = 0) -> None:
        self.count, self.context, self.init = count, context, init

    def cuInit(self, flags: int) -> int:
        return self.init

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = self.count
        return 0

    def cuCtxGetDevice(self, device: Any) -> int:
        if self.context is None:
            return NO_CONTEXT
        device._obj.value = 100 + self.context
        return 0

    def cuDeviceGet(self, device: Any, index: int) -> int:
        device._obj.value = 100 + index
        return 0

    def cuDeviceGetName(self, name: Any, size: int, device: Any) -> int:
        name.value = NAMES[device.value - 100].encode()
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:
        value._obj.value = CAPABILITIES[device.value - 100][(75, 76).index(attribute)]
        return 0

    def cuDriverGetVersion(self, version: Any) -> int:
        version._obj.value = 13020
        return 0


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    """A machine with three GPUs, on which torch has not used CUDA yet."""
    fake = FakeDriver()
    monkeypatch.setattr(gpu, "_driver", lambda: fake)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    return fake


def test_without_a_context_it_is_the_first_visible_gpu(driver) -> None:
    here = gpu.here()
    assert here == gpu.Gpu(name="NVIDIA A100", capability="8.0", driver="13.2", index=0)
    assert str(here) == "NVIDIA A100 (compute capability 8.0)"
    assert gpu.missing() is None


def test_the_threads_context_decides(driver) -> None:
    driver.context = 2
    assert gpu.here() == gpu.Gpu(name="NVIDIA H100", capability="9.0", driver="13.2", index=2)


@pytest.mark.parametrize(("initialized", "name"), [(True, NAMES[1]), (False, NAMES[2])])
def test_torchs_current_device_decides_once_torch_uses_cuda(
    driver, monkeypatch, initialized, name
) -> None:
    driver.context = 2
    cuda = SimpleNamespace(is_initialized=lambda: initialized, current_device=lambda: 1)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    assert gpu.here().name == name


def test_another_current_gpu_is_seen_at_once(driver) -> None:
    driver.context = 1
    assert gpu.here().name == NAMES[1]
    driver.context = 0
    assert gpu.here().name == NAMES[0]


def test_onnxruntime_computes_on_the_current_gpu(driver, monkeypatch) -> None:
    started = []
    monkeypatch.setattr(
        "onnxruntime.InferenceSession", lambda *_, providers: started.append(providers)
    )
    driver.context = 1
    find_runtime("onnxruntime:cuda").start(b"", None)
    find_runtime("onnxruntime").start(b"", None)
    assert started == [
        [("CUDAExecutionProvider", {"device_id": "1"})],
        [("CPUExecutionProvider", {})],
    ]


def test_a_driver_without_a_gpu_says_why(driver) -> None:
    driver.count = 0
    assert gpu.here() is None
    assert gpu.missing() == "the NVIDIA driver finds no GPU (CUDA error 0)"
    driver.init = 100
    assert gpu.missing() == "the NVIDIA driver finds no GPU (CUDA error 100)"


def test_a_machine_without_a_driver_says_so(monkeypatch) -> None:
    monkeypatch.setattr(gpu, "LIBRARIES", ("libnothing.so.1",))
    gpu._driver.cache_clear()
    try:
        assert gpu.here() is None
        assert gpu.missing() == "there is no NVIDIA driver (libnothing.so.1) on this machine"
    finally:
        gpu._driver.cache_clear()


@pytest.mark.skipif(gpu.here() is None, reason=f"needs a GPU: {gpu.missing()}")
def test_the_real_driver_and_torch_name_the_same_gpu() -> None:
    torch = pytest.importorskip("torch")
    here = gpu.here()
    assert here is not None
    assert here.name == torch.cuda.get_device_name(here.index)
    assert here.capability == ".".join(map(str, torch.cuda.get_device_capability(here.index)))

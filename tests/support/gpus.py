"""Marks of tests that need a GPU, and of their twins that are about a machine without one."""

import pytest

from rope_export import gpu
from rope_export.runtimes import find_runtime

_NO_CUDA = find_runtime("onnxruntime:cuda").unavailable()

with_gpu = pytest.mark.skipif(gpu.here() is None, reason=f"needs a GPU: {gpu.missing()}")
without_gpu = pytest.mark.skipif(gpu.here() is not None, reason=f"there is a GPU: {gpu.here()}")
with_cuda = pytest.mark.skipif(_NO_CUDA is not None, reason=f"onnxruntime:cuda: {_NO_CUDA}")
without_cuda = pytest.mark.skipif(_NO_CUDA is None, reason="onnxruntime:cuda is on this machine")

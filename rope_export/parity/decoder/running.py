"""Runs a layer that was cut out of a model, where the whole model runs."""

from collections.abc import Callable
from functools import partial

import numpy as np

from rope_export.runtimes import all_runtimes
from rope_export.runtimes.base import RunsModels
from rope_export.runtimes.onnxruntime_tensorrt import TensorrtProvider

Arrays = dict[str, np.ndarray]
RunLayer = Callable[[Arrays], Arrays]


def layer_runner(runtime: str, threads: int | None = None) -> Callable[[bytes], RunLayer] | None:
    """Opens models on a runtime; none if that does not run every model, or computes some otherwise
    than ONNX defines them. threads: that a call may use; all cores unless given."""
    chosen = all_runtimes().get(runtime)
    if not isinstance(chosen, RunsModels) or isinstance(chosen, TensorrtProvider):
        return None
    return partial(chosen.compute, threads=threads)

"""Runs a layer that was cut out of a model, where onnxruntime does."""

from collections.abc import Callable

import numpy as np

from rope_export.errors import ArtifactError
from rope_export.runtimes import all_runtimes
from rope_export.runtimes.onnxruntime import OnnxRuntime, first_line

Arrays = dict[str, np.ndarray]
RunLayer = Callable[[Arrays], Arrays]


def layer_runner(runtime: str) -> Callable[[bytes], RunLayer] | None:
    """Opens models on a runtime; none if that is not one of onnxruntime's providers."""
    chosen = all_runtimes().get(runtime)
    if not isinstance(chosen, OnnxRuntime) or type(chosen) is not OnnxRuntime:
        return None

    def opened(model: bytes) -> RunLayer:
        try:
            session = chosen.start(model, chosen.options())
        except Exception as error:  # onnxruntime's own kinds derive from Exception alone
            raise ArtifactError(f"onnxruntime refuses a layer: {first_line(error)}") from error
        names = [x.name for x in session.get_outputs()]

        def run(inputs: Arrays) -> Arrays:
            try:
                return dict(zip(names, session.run(names, inputs), strict=True))
            except Exception as error:
                raise ArtifactError(f"onnxruntime fails: {first_line(error)}") from error

        return run

    return opened

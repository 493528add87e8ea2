"""torch's table of operators, read once in a process."""

import functools
from typing import Any


def read_operators_once() -> None:
    """torch's exporter reads its table of a thousand operators anew for every export, which is a
    third of the time that a small one takes. For the workers of the proofs; no test calls it."""
    from torch.onnx._internal.exporter import _registration

    scripts: Any = _registration.onnxscript_apis
    if not hasattr(scripts.get_torchlib_ops, "cache_info"):
        scripts.get_torchlib_ops = functools.cache(scripts.get_torchlib_ops)

"""Rotary attention from PyTorch to ONNX, proven to compute what eager PyTorch computes.

The public names are loaded when first used: importing this package, or running an exported
artifact with `open_session`, needs neither torch nor transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING

import rope_export.config_reader  # noqa: F401 - AttentionSpec.from_hf reads with it
from rope_export.version import VERSION

if TYPE_CHECKING:
    from rope_export.artifacts.artifact import Artifact
    from rope_export.attention.layer import RotaryAttention
    from rope_export.decoder.pipeline import export_decoder
    from rope_export.engines import build_engine
    from rope_export.errors import RopeExportError
    from rope_export.exporter.pipeline import export
    from rope_export.parity import verify
    from rope_export.sessions import open_session
    from rope_export.spec import AttentionSpec

__version__ = VERSION

_HOME = {
    "Artifact": "rope_export.artifacts.artifact",
    "AttentionSpec": "rope_export.spec",
    "RopeExportError": "rope_export.errors",
    "RotaryAttention": "rope_export.attention.layer",
    "build_engine": "rope_export.engines",
    "export": "rope_export.exporter.pipeline",
    "export_decoder": "rope_export.decoder.pipeline",
    "open_session": "rope_export.sessions",
    "verify": "rope_export.parity",
}

__all__ = [
    "Artifact",
    "AttentionSpec",
    "RopeExportError",
    "RotaryAttention",
    "build_engine",
    "export",
    "export_decoder",
    "open_session",
    "verify",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]

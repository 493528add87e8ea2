"""Where layers come from: a checkpoint folder, a GGUF file, a config or a hub id."""

from rope_export.checkpoints.model import Layer, Layers, Model
from rope_export.checkpoints.opening import NO_ADAPTER, open_model

__all__ = ["NO_ADAPTER", "Layer", "Layers", "Model", "open_model"]

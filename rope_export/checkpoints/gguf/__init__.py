"""GGUF files: the config in their metadata, and weights as llama.cpp stores them."""

from rope_export.checkpoints.gguf.file import GgufFile

__all__ = ["GgufFile"]

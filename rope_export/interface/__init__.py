"""The tensors of an artifact: their names, dtypes and symbolic shapes, and which are one cache."""

from rope_export.interface.attention import (
    attention_interface,
    attention_roles,
    cache_names,
    cached,
)
from rope_export.interface.base import LENGTHS, TOTAL, CachePair, Interface, TensorType
from rope_export.interface.decoder import decoder_interface

__all__ = [
    "LENGTHS",
    "TOTAL",
    "CachePair",
    "Interface",
    "TensorType",
    "attention_interface",
    "attention_roles",
    "cache_names",
    "cached",
    "decoder_interface",
]

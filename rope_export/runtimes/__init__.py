"""Runtimes: each says why it is not available, or opens an artifact as a thin Runner."""

from rope_export.runtimes.base import Runner, Runtime
from rope_export.runtimes.discovery import all_runtimes, find_runtime

__all__ = ["Runner", "Runtime", "all_runtimes", "find_runtime"]

"""Runtimes: each opens an artifact as a thin Runner, or gives the reason why it cannot."""

from rope_export.runtimes.base import Runner, Runtime
from rope_export.runtimes.discovery import all_runtimes, find_runtime

__all__ = ["Runner", "Runtime", "all_runtimes", "find_runtime"]

"""Sweeps: every combination of sources, options and runtimes, each artifact exported once and
verified on all of its runtimes, with one report."""

from rope_export.errors import extra

with extra("export", "sweeping"):
    from rope_export.sweep.matrix import Matrix, read_matrix
    from rope_export.sweep.planning import Plan, planned
    from rope_export.sweep.sweeping import Swept, sweep

__all__ = ["Matrix", "Plan", "Swept", "planned", "read_matrix", "sweep"]

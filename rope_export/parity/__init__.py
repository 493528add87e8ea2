"""Proof that an artifact computes, on every runtime, what eager PyTorch computes.

A row passes when the runtime's error is at most twice eager's own, both against a float64
reference, and eager's is within an a-priori bound on rounding: see `bounds` for both figures.
"""

from rope_export.errors import extra

with extra("export", "comparing with eager PyTorch"):
    from rope_export.parity.harness import verify
    from rope_export.parity.layer.inv_freq import frequencies
    from rope_export.parity.report.result import Report
    from rope_export.parity.rows import Row

__all__ = ["Report", "Row", "frequencies", "verify"]

"""How fast artifacts are beside PyTorch, and beside what the machine could do at best."""

from rope_export.bench.entrants import Choice
from rope_export.bench.harness import Progress, benchmark
from rope_export.bench.result import Bench
from rope_export.bench.shapes import Shape, sweep
from rope_export.bench.timing import Plan

__all__ = ["Bench", "Choice", "Plan", "Progress", "Shape", "benchmark", "sweep"]

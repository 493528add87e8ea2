"""Layers, weights and calls that Hypothesis draws, each compared with eager PyTorch.

`fuzz("my_lowering")` is the whole of it for a lowering or a runtime; `examples` is the strategy,
for tests of one's own, and `check` what is asked of each example. Needs the extra `fuzz`.
"""

from rope_export.errors import extra

with extra("fuzz", "drawing examples"):
    from rope_export.fuzz.call_strategies import calls, numbers, weights
    from rope_export.fuzz.example import Example, Numbers
    from rope_export.fuzz.rope_strategies import rotations
    from rope_export.fuzz.search import examples, fuzz
    from rope_export.fuzz.spec_strategies import layers
    from rope_export.fuzz.verdict import Counterexample, check, judged

__all__ = [
    "Counterexample",
    "Example",
    "Numbers",
    "calls",
    "check",
    "examples",
    "fuzz",
    "judged",
    "layers",
    "numbers",
    "rotations",
    "weights",
]

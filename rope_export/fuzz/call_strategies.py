"""Calls: batches, lengths, positions, padding, and numbers of every size."""

from collections.abc import Mapping
from typing import Any

from rope_export.errors import extra
from rope_export.fuzz.example import Numbers
from rope_export.parity.cases import FAR, Case
from rope_export.spec import AttentionSpec

with extra("fuzz", "drawing examples"):
    from hypothesis import strategies as st

EXPONENTS = {"float32": (-149, 96), "bfloat16": (-133, 96), "float16": (-24, 14)}
"""Powers of two from the smallest number that a dtype has, subnormal, to those whose products stay
within its range."""

SIZES = {"float32": (-140, 40), "bfloat16": (-130, 40), "float16": (-20, 6)}
"""The same of hidden states, which are multiplied by weights."""

NEAR = 9
"""Tokens of a row that are new, and of its past, at most in nearly all calls."""

LONG = (17, 33, 70)
"""Longer ones: of several blocks of what kernels take at once."""

BEGINNINGS = (0, 1, 4_095, 65_504, 131_071, FAR - 200)
"""Positions that calls begin at, beside those that are drawn."""


def lengths() -> st.SearchStrategy[int]:
    """New tokens, or those of a past."""
    return st.integers(0, NEAR) | st.sampled_from(LONG)


@st.composite
def calls(draw: Any, spec: AttentionSpec, cache: str, padding: bool = False) -> Case:
    """One call of a layer. Shrinks to one token at position 0, without a past."""
    batch = draw(st.integers(1, 3))
    sequence = max(1, draw(lengths()))
    past = 0 if cache == "none" else draw(lengths())
    rows: tuple[int, ...] | None = None
    if cache == "fixed" and batch > 1 and past and draw(st.booleans()):
        others = st.lists(st.integers(0, past), min_size=batch - 1, max_size=batch - 1)
        rows = tuple(draw(st.permutations([past, *draw(others)])))
    beginnings = st.sampled_from(BEGINNINGS) | st.none()
    if spec.first_position is None:
        beginnings |= st.sampled_from([-1, -1_000, -FAR])
    return Case(
        batch=batch,
        sequence=sequence,
        past=past,
        start=draw(beginnings),
        padding=draw(st.sampled_from([None, "left", "right", "holes", "unequal"]))
        if padding
        else None,
        lengths=rows,
        spare=draw(st.sampled_from([3, 0, 1, 30])) if cache == "fixed" else 3,
    )


@st.composite
def numbers(draw: Any, dtype: str, exponents: Mapping[str, tuple[int, int]] = EXPONENTS) -> Numbers:
    """Sizes of one tensor's numbers, tiny ones, subnormal ones and huge ones, and an outlier
    channel. Shrinks to numbers as they are drawn."""
    lowest, highest = exponents[dtype]
    near = st.integers(-6, 6)
    exponent = draw(st.just(0) | near | st.integers(lowest, highest))
    channel = draw(st.none() | st.integers(0, 7))
    gain = 0 if channel is None else draw(st.integers(1, 12))
    return Numbers(exponent=exponent, channel=channel, gain=gain)


@st.composite
def weights(draw: Any, spec: AttentionSpec) -> dict[str, Numbers]:
    """What is unusual in some of a layer's weights, by name. Shrinks to nothing."""
    names = sorted(spec.weight_shapes)
    some = draw(st.sets(st.sampled_from(names), max_size=3))
    drawn = {name: draw(numbers(spec.dtype)) for name in sorted(some)}
    return {name: value for name, value in drawn.items() if value != Numbers()}

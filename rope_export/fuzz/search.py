"""Whole examples, and the one call that draws and checks them."""

from collections.abc import Callable, Sequence
from typing import Any

from rope_export.errors import InputError, UnavailableError, extra
from rope_export.fuzz.call_strategies import SIZES, calls, numbers, weights
from rope_export.fuzz.example import Example
from rope_export.fuzz.shrink import shrunk
from rope_export.fuzz.spec_strategies import layers
from rope_export.fuzz.verdict import Counterexample, check
from rope_export.lowerings import lowerings
from rope_export.runtimes import find_runtime
from rope_export.spec import AttentionSpec

with extra("fuzz", "drawing examples"):
    import hypothesis
    from hypothesis import HealthCheck, Phase, assume, given, settings
    from hypothesis import strategies as st

DTYPES = ("float32", "float16")
"""Those that onnxruntime's CPU kernels have."""

CALLS = 4
"""Calls of one artifact at most."""

SHRINKING = 150
"""Smaller examples that are compared at most once one has failed."""


@st.composite
def examples(
    draw: Any,
    names: Sequence[str] | None = None,
    *,
    runtimes: Sequence[str] = ("onnxruntime",),
    caches: Sequence[str] | None = None,
    dtypes: Sequence[str] = DTYPES,
    specs: "Callable[[Any, str, str], st.SearchStrategy[AttentionSpec]]" = layers,
) -> Example:
    """A layer that a lowering expresses, its weights and a few calls of it.

    names: of lowerings, all of them without. caches: those that a lowering has, without. specs:
    the strategy of layers, by the lowering, the cache and the dtype. Shrinks to one call of one
    token with the first lowering, cache and dtype.
    """
    every = lowerings()
    name = draw(st.sampled_from(list(names or every)))
    cache = draw(st.sampled_from([x for x in every[name].caches if x in (caches or (x,))]))
    spec = draw(specs(every[name], cache, draw(st.sampled_from(list(dtypes)))))
    padding = draw(st.booleans())
    return Example(
        spec=spec,
        lowering=name,
        cache=cache,
        padding=padding,
        runtime=draw(st.sampled_from(list(runtimes))),
        cases=tuple(draw(st.lists(calls(spec, cache, padding), min_size=1, max_size=CALLS))),
        seed=draw(st.integers(0, 9)),
        hidden_states=draw(numbers(spec.dtype, SIZES)),
        weights=draw(weights(spec)),
    )


def fuzz(
    names: Sequence[str] | None = None,
    *,
    runtimes: Sequence[str] = ("onnxruntime",),
    caches: Sequence[str] | None = None,
    dtypes: Sequence[str] = DTYPES,
    count: int = 50,
    seed: int = 0,
    shrinking: int = SHRINKING,
    progress: Callable[[str, float], None] = lambda step, done: None,
) -> int:
    """Draw layers and calls, export them, and compare each with eager PyTorch by the acceptance
    rule of `verify`.

    names: of lowerings, all without. runtimes, caches, dtypes: to draw from. count: of examples
    that are compared. seed: of the draws; the same one draws the same examples. shrinking: how many
    smaller examples are tried once one fails. progress: is told what is done.
    Returns: how many examples were compared.
    Raises: Counterexample for the smallest one that was found; InputError for a name that there
        is not; UnavailableError where a runtime is missing, or nothing could be compared.
    """
    _check_names(names, runtimes, caches)
    run = _Run(count, shrinking, progress)
    strategy = examples(names, runtimes=runtimes, caches=caches, dtypes=dtypes)
    rules = settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
        print_blob=False,
    )
    hypothesis.seed(seed)(rules(given(strategy)(run.compare)))()
    if not run.compared:
        raise UnavailableError(
            f"nothing was compared: {', '.join(runtimes)} ran none of {count} examples."
        )
    return run.compared


class _Run:
    """What one search knows. compared: how many examples were."""

    def __init__(self, count: int, tries: int, progress: Callable[[str, float], None]) -> None:
        self.count, self.tries, self.progress = count, tries, progress
        self.compared = self.tried = 0
        self.smallest: Counterexample | None = None

    def compare(self, example: Example) -> None:
        """Raises: Counterexample, the smallest that is found."""
        if self.smallest is not None:  # Hypothesis runs it again
            raise self.smallest
        try:
            ran = check(example)
        except Counterexample as counterexample:
            self.smallest = counterexample
            shrunk(counterexample.example, self._fails, self.tries)
            raise self.smallest from None
        assume(ran)
        self.compared += 1
        self.progress(f"lowering {example.lowering}", min(1.0, self.compared / self.count))

    def _fails(self, example: Example) -> bool:
        self.tried += 1
        self.progress(f"shrinking, {self.tried} tried", self.tried / self.tries)
        try:
            check(example)
        except Counterexample as counterexample:
            self.smallest = counterexample
            return True
        return False


def _check_names(
    names: Sequence[str] | None, runtimes: Sequence[str], caches: Sequence[str] | None
) -> None:
    every = lowerings()
    for name in names or ():
        if name not in every:
            raise InputError(f"lowering {name!r} does not exist; use {', '.join(every)}.")
        able = every[name].caches
        if caches is not None and not set(caches) & set(able):
            raise InputError(
                f"`caches`={', '.join(caches)}: lowering {name!r} has {', '.join(able)}."
            )
    for name in runtimes:
        reason = find_runtime(name).unavailable()
        if reason is not None:
            raise UnavailableError(f"runtime {name!r}: {reason}")

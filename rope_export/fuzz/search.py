"""Whole examples, and the one call that draws and checks them."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, get_args, get_type_hints

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
    from hypothesis.errors import Unsatisfiable

DTYPES = ("float32", "float16")
"""Those that onnxruntime's CPU kernels have."""

CALLS = 4
"""Calls of one artifact at most."""

SHRINKING = 150
"""Smaller examples that are compared at most once one has failed."""

HOPELESS = 20
"""Examples after which a search in which none could be compared exports no more."""


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
    able = [x for x in names or every if set(every[x].caches) & set(caches or every[x].caches)]
    name = draw(st.sampled_from(able))
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
    _check_names(names, runtimes, caches, dtypes)
    run = _Run(count, shrinking, progress, f"{', '.join(runtimes)} in {', '.join(dtypes)}")
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
    with suppress(Unsatisfiable):  # which is told below
        hypothesis.seed(seed)(rules(given(strategy)(run.compare)))()
    if not run.compared:
        raise run.nothing
    return run.compared


class _Run:
    """What one search knows. seen, compared: how many examples were."""

    def __init__(
        self, count: int, tries: int, progress: Callable[[str, float], None], where: str
    ) -> None:
        """where: the runtimes and the dtypes, in words."""
        self.count, self.tries, self.progress, self.where = count, tries, progress, where
        self.seen = self.compared = self.tried = 0
        self.smallest: Counterexample | None = None

    def compare(self, example: Example) -> None:
        """Raises: Counterexample, the smallest that is found; UnavailableError if nothing can be
        compared."""
        if self.smallest is not None:  # Hypothesis runs it again
            raise self.smallest
        if not self.compared and self.seen == HOPELESS:
            raise self.nothing
        self.seen += 1
        try:
            ran = check(example)
        except Counterexample as counterexample:
            self.smallest = counterexample
            shrunk(counterexample.example, self._fails, self.tries)
            raise self.smallest from None
        assume(ran)
        self.compared += 1
        self.progress(f"lowering {example.lowering}", min(1.0, self.compared / self.count))

    @property
    def nothing(self) -> UnavailableError:
        """What tells that nothing could be compared."""
        return UnavailableError(
            f"nothing was compared: {self.where} could run none of {self.seen} examples; use "
            f"another runtime or `dtype`."
        )

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
    names: Sequence[str] | None,
    runtimes: Sequence[str],
    caches: Sequence[str] | None,
    dtypes: Sequence[str],
) -> None:
    every = lowerings()
    hints = get_type_hints(AttentionSpec)["dtype"], get_type_hints(Example)["cache"]
    for what, asked, hint in zip(("dtype", "cache"), (dtypes, caches or ()), hints, strict=True):
        for name in asked:
            if name not in get_args(hint):
                raise InputError(
                    f"{what} {name!r} does not exist; use {', '.join(get_args(hint))}."
                )
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

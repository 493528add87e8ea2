"""The results of a comparison of decoders, as Markdown."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rope_export.bench.markdown import table_lines
from scripts.benchmarks.decoders.exporting import Exported
from scripts.benchmarks.decoders.measure import NEW, PASTS, TEXTS, Rates

EXPORT = (
    "Whole processes, imports included, that take turns: median of {rounds} calls, smallest and "
    "largest (optimum-onnx: one call); the largest resident memory, which counts mapped pages of "
    "the files that are read and written. Without verifying."
)
GENERATE = (
    "Tokens a second, greedy, batch 1, {threads} threads: {steps} tokens after a prompt of so "
    "many, and the seconds to the first token after a prompt of {prompt}; medians of {rounds} "
    "rounds, smallest and largest. Each way runs in a process and an environment of its own; a "
    "block of one takes turns with blocks of the others, in an order drawn anew in each round. "
    "The same text: prompts of {prompts} whose {texts} greedy tokens are those of transformers in "
    "float32. Of the limit: of the tokens a second at which weights and cache are read once, at "
    "the {bandwidth:.1f} GB/s that this memory gave, measured in every round ({low:.1f} to "
    "{high:.1f})."
)
LOOPS = (
    "**ours**: `rope-export generate`'s loop. **genai**: onnxruntime-genai's own generator. "
    "**plain loop**: one and the same loop over onnxruntime for every file, caches bound once."
)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The machine, the settings and the model of a comparison. bytes: read for one token, without
    the cache, by the weights' dtype. slot: bytes of one slot of all caches."""

    date: str
    cpu: str
    load: float
    threads: int
    rounds: int
    export_rounds: int
    prompts: int
    model: str
    bandwidths: list[float]
    bytes: dict[str, int]
    slot: int
    versions: dict[str, dict[str, str]]
    command: str

    @property
    def bandwidth(self) -> float:
        return statistics.median(self.bandwidths)

    def limit(self, weights: str, past: int) -> float:
        """Tokens a second at which weights and cache are read once."""
        return self.bandwidth / (self.bytes[weights] + self.slot * (past + NEW // 2))


@dataclass(frozen=True, kw_only=True)
class Results:
    """By the dtype of weights: exports, rates by way and past, and how many texts are the same."""

    facts: Facts
    exports: Mapping[str, Sequence[Exported]]
    rates: Mapping[str, Mapping[str, Mapping[int, Rates]]]
    same: Mapping[str, Mapping[str, int | str]]
    refused: Mapping[str, Mapping[str, str]]


def page_lines(results: Results) -> Iterator[str]:
    """The whole page, line by line."""
    facts = results.facts
    yield from ("# Decoders side by side", "")
    yield (
        f"Measured on {facts.date} by `{facts.command}` on {facts.cpu}, load average "
        f"{facts.load:.1f} before. {facts.model}, the same checkpoint for all."
    )
    yield ""
    versions = [
        (name, ", ".join(f"{package} {number}" for package, number in found.items()))
        for name, found in facts.versions.items()
    ]
    yield from table_lines(("environment", "versions"), versions)
    yield from ("", "## Export", "", EXPORT.format(rounds=facts.export_rounds), "")
    rows = [_export(weights, one) for weights, x in results.exports.items() for one in x]
    yield from table_lines(("exporter", "weights", "seconds", "peak MB", "files MB"), rows)
    for weights in results.rates:
        yield from ("", f"## Generating, {weights} weights", "", _legend(facts), "", LOOPS, "")
        yield from _rates(results, weights)
        yield from _ratios(results.rates[weights])


def _legend(facts: Facts) -> str:
    return GENERATE.format(
        threads=facts.threads,
        steps=NEW - 1,
        prompt=PASTS[1],
        rounds=facts.rounds,
        prompts=facts.prompts,
        texts=TEXTS,
        bandwidth=facts.bandwidth / 1e9,
        low=min(facts.bandwidths) / 1e9,
        high=max(facts.bandwidths) / 1e9,
    )


def _export(weights: str, exported: Exported) -> tuple[str, ...]:
    if exported.problem:
        return (exported.exporter.name, weights, exported.problem, "", "")
    seconds = [cost.seconds for cost in exported.costs]
    return (
        exported.exporter.name,
        weights,
        f"{exported.seconds:.1f} ({min(seconds):.1f}–{max(seconds):.1f})",  # noqa: RUF001
        f"{exported.peak / 1e6:,.0f}",
        f"{exported.bytes / 1e6:,.0f}",
    )


def _rates(results: Results, weights: str) -> Iterator[str]:
    heads = ("way", *(f"after {past}" for past in PASTS), "of the limit")
    rows = []
    for name, rates in results.rates[weights].items():
        shares = [_share(results.facts, weights, past, rates[past]) for past in PASTS]
        cells = [_spread(rates[past].decode, rates[past].problem) for past in PASTS]
        first = _spread(rates[PASTS[1]].first, rates[PASTS[1]].problem, digits=2)
        rows.append((name, *cells, " / ".join(shares), first, results.same[weights].get(name, "")))
    for name, reason in results.refused[weights].items():
        rows.append((name, reason, *[""] * (len(PASTS) + 3)))
    yield from table_lines((*heads, f"prefill {PASTS[1]}, s", "the same text"), rows)


def _share(facts: Facts, weights: str, past: int, rates: Rates) -> str:
    return f"{100 * rates.median / facts.limit(weights, past):.0f} %" if rates.decode else "–"  # noqa: RUF001


def _spread(values: Sequence[float], problem: str | None, digits: int = 1) -> str:
    if not values:
        return problem or ""
    low, high = min(values), max(values)
    return f"{statistics.median(values):.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"  # noqa: RUF001


PAIRS = (
    ("rope_export, ours", "onnxruntime-genai, genai"),
    ("rope_export, plain loop", "onnxruntime-genai, plain loop"),
)
"""Whose tokens a second are divided by whose."""


def _ratios(rates: Mapping[str, Mapping[int, Rates]]) -> Iterator[str]:
    """Ratios of the rates of one round, and their median."""
    rows = []
    for own, other in PAIRS:
        if own not in rates or other not in rates:
            continue
        cells = [_ratio(rates[own][past].decode, rates[other][past].decode) for past in PASTS]
        cells += [_ratio(rates[other][past].first, rates[own][past].first) for past in PASTS[1:]]
        rows.append((f"{own} ÷ {other}", *cells))
    if rows:
        heads = [f"after {past}" for past in PASTS] + [f"prefill {past}" for past in PASTS[1:]]
        yield ""
        yield from table_lines(("times as fast, median of the rounds", *heads), rows)


def _ratio(own: Sequence[float], other: Sequence[float]) -> str:
    if not own or not other:
        return ""
    return _spread([a / b for a, b in zip(own, other, strict=False)], None, digits=2)
